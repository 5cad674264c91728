"""The second use case's features: keys of two columns, one derived; monthly rows that expire."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from random import Random

import pandas as pd
import pyarrow as pa
import pytest

from core.settings import PROJECT
from core.spec import entity_text
from feature_repo import validation
from feature_repo.entities import last_of_key
from feature_repo.features import labels, open_raw, raw_table
from feature_repo.ingest import catch_up
from feature_repo.online_values import OnlineValues
from feature_repo.parity import same
from feature_repo.refresh import refresh_online
from feature_repo.service import PublishedService
from feature_repo.store import publish_beside
from feature_repo.views import entities
from tests.feature_repo.conftest import consuming, online_reader
from tests.feature_repo.test_parity_properties import any_seed

FOLDER = PROJECT / "tests" / "training" / "spend"
KEY = ("customer_id", "basket")
SERVICE = "next_quarter_spend_v1"
NAMES = ("orders_3m", "spend_3m", "orders_12m", "spend_12m", "months_since_last_order",
         "avg_order_value", "order_kind")  # fmt: skip
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
TICK = timedelta(microseconds=1)
STARTS = [datetime(2125 + n // 12, n % 12 + 1, 1, tzinfo=UTC) for n in range(36)]
ARRIVALS = [
    datetime(2126, 1, 17, 9, tzinfo=UTC),
    STARTS[13],
    datetime(2126, 6, 30, tzinfo=UTC),
]
CUSTOMERS = range(1, 31)


@pytest.fixture(scope="module")
def spend():
    """The dataset as the tutorial puts it into place."""
    name = "feature_repo.datasets.spend"
    found = importlib.util.spec_from_file_location(
        name, FOLDER / f"{name.replace('.', '/')}.py"
    )
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    yield module.SPEND
    del sys.modules[name]


class Shop:
    """Orders that land in batches, in an installation of their own, online after each."""

    def __init__(self, settings, dataset):
        publish_beside(settings, dataset)
        self.settings, self.dataset = settings, dataset
        self.raw = raw_table(settings, dataset)
        self.service = PublishedService(settings, SERVICE)

    def land(self, orders, arrival):
        rows = last_of_key(
            pa.Table.from_pylist(orders, self.dataset.schema), self.dataset.key
        )
        known_at = pa.array([arrival] * len(rows), pa.timestamp("us", "UTC"))
        rows = rows.append_column("ingested_at", known_at)
        self.raw.merge(rows, self.dataset.key, self.dataset.schema.names)
        catch_up(self.settings, self.dataset, self.raw, arrival)

    def online(self, keys, at):
        reader = online_reader(self.settings, SERVICE, NAMES)
        found = reader.read([dict(zip(KEY, key, strict=True)) for key in keys], at)
        reader.close()
        return dict(zip(keys, found, strict=True))

    def offline(self, asked):
        frame = pd.DataFrame(
            [(*key, at) for key, at in asked], columns=[*KEY, "event_timestamp"]
        )
        rows = self.service.historical(frame).to_pylist()
        return {((row["customer_id"], row["basket"]), row["event_timestamp"]): (
            None if row["orders_12m"] is None else {name: row[name] for name in NAMES}
        ) for row in rows}  # fmt: skip


def order(number, customer, at, cds=1, cents=1_000):
    return {"order_id": number, "customer_id": customer, "order_ts": at,
            "number_of_cds": cds, "dollar_value": cents / 100}  # fmt: skip


def mine(orders, key):
    kinds = {True: "single", False: "several"}
    return [
        o for o in orders if (o["customer_id"], kinds[o["number_of_cds"] == 1]) == key
    ]


def brute_force(orders, key, at):
    """What is known of `key` at `at`: its newest month start's row, if that is not too old."""
    first = [
        next(n for n, t in enumerate(STARTS) if t >= o["order_ts"])
        for o in mine(orders, key)
    ]
    for n in reversed([n for n, start in enumerate(STARTS) if start <= at]):
        ages = {i: n - of for i, of in enumerate(first) if 0 <= n - of <= 12}
        if ages:
            break
    else:
        return None
    if at - STARTS[n] > 31 * DAY:
        return None
    year = {i: age for i, age in ages.items() if age < 12}
    cents = {i: round(100 * mine(orders, key)[i]["dollar_value"]) for i in year}
    recent = [cents[i] for i, age in year.items() if age < 3]
    return {
        "orders_3m": len(recent), "spend_3m": sum(recent) / 100,
        "orders_12m": len(year), "spend_12m": sum(cents.values()) / 100,
        "months_since_last_order": min(ages.values()),
        "avg_order_value": sum(cents.values()) / 100 / len(year) if year else None,
        "order_kind": key[1],
    }  # fmt: skip


def agree(orders, found):
    differ = []
    for (key, at), values in found.items():
        wanted = brute_force(orders, key, at)
        if (values is None) != (wanted is None) or any(
            not same(wanted[name], values[name]) for name in wanted or ()
        ):
            differ.append(
                f"{key} at {at}: {values}, expected {wanted} of {mine(orders, key)}"
            )
    assert not differ, "\n".join([f"{len(differ)} differences, such as", *differ[:3]])


def some_time(chance):
    """Any time, and often the very start of a month or the tick beside it."""
    at = chance.choice(STARTS[:18]) + chance.choice(
        [0 * DAY, -TICK, TICK, 14 * DAY, 27 * DAY]
    )
    return min(max(at, STARTS[0]), ARRIVALS[-1])


def batches_of(chance):
    """Orders as they arrive: in time or late, some corrected later to another kind or customer."""
    batches = [[] for _ in ARRIVALS]
    for number in range(1, 120):
        at = some_time(chance)
        due = next(n for n, arrival in enumerate(ARRIVALS) if arrival >= at)
        first = order(number, chance.choice(CUSTOMERS), at, chance.choice([1, 1, 2, 5]),
                      chance.choice([0, 1, 1_496]))  # fmt: skip
        landed = chance.randint(due, len(ARRIVALS) - 1)
        batches[landed].append(first)
        if chance.random() < 0.3:
            before = max(at - chance.choice([TICK, 31 * DAY]), STARTS[0])
            change = chance.choice([{"number_of_cds": 1}, {"number_of_cds": 3},
                                    {"customer_id": chance.choice(CUSTOMERS)},
                                    {"order_ts": before}])  # fmt: skip
            batches[chance.randint(landed, len(ARRIVALS) - 1)].append(first | change)
    return batches


@any_seed(2)
def test_rows_of_two_keys_are_the_same_online_offline_and_by_hand(
    template, spend, seed
):
    chance = Random(seed)
    shop = Shop(template.restore(), spend)
    keys = [
        (customer, kind) for customer in CUSTOMERS for kind in ("single", "several")
    ]
    standing = {}
    for batch, arrival in zip(batches_of(chance), ARRIVALS, strict=True):
        shop.land(batch, arrival)
        standing |= {each["order_id"]: each for each in batch}
        found = shop.online(keys, arrival)
        agree(standing.values(), {(key, arrival): found[key] for key in keys})
    orders = [*standing.values()]
    moments = [some_time(chance) for _ in range(20)] + [
        start + 31 * DAY for start in STARTS[9:20]
    ]
    asked = [(key, at) for key in keys for at in {*moments, *STARTS[:25]}]
    agree(orders, shop.offline(asked))
    snapshots = [*STARTS[3:12], datetime(2125, 8, 14, tzinfo=UTC)]
    label_rows = labels(open_raw(shop.raw), spend.labels["spend_90d"], snapshots)
    labelled = label_rows.to_pyarrow().to_pylist()
    told = {
        ((r["customer_id"], r["basket"]), r["event_timestamp"]): r["label"]
        for r in labelled
    }
    for key in keys:
        for at in STARTS[3:12]:
            row, age = brute_force(orders, key, at), timedelta(days=90)
            member = row is not None and row["months_since_last_order"] < 12
            member = member and any(o["order_ts"] > _year_before(at) and o["order_ts"] <= at
                                    for o in mine(orders, key))  # fmt: skip
            ahead = [o for o in mine(orders, key) if at < o["order_ts"] <= at + age]
            cents = sum(round(100 * o["dollar_value"]) for o in ahead)
            assert told.get((key, at)) == (cents / 100 if member else None), (key, at)


def _year_before(at):
    return at.replace(year=at.year - 1)


NEW_YEAR, FEBRUARY, MARCH = STARTS[12:15]


@pytest.fixture
def shop(applied, spend):
    """Customer 1 has an order of a single CD, from the 10th of January, seen from February on."""
    made = Shop(applied, spend)
    made.land([order(1, 1, NEW_YEAR + 9 * DAY)], FEBRUARY)
    return made


def spent(shop, at):
    keys = [(1, "single"), (1, "several"), (2, "single"), (2, "several")]
    found = shop.online(keys, at).values()
    return [row and row["spend_12m"] for row in found]


def test_an_event_that_changes_a_derived_key_makes_the_old_entity_unknown(
    shop, monkeypatch
):
    monkeypatch.setattr(
        validation, "EXPECTATIONS", FOLDER / "feature_repo" / "expectations"
    )
    assert spent(shop, FEBRUARY) == [10.0, None, None, None]
    moment = FEBRUARY + DAY
    several = order(1, 1, NEW_YEAR + 9 * DAY, cds=3)
    with consuming(shop.settings, shop.dataset) as send:
        send(moment, several)
        assert spent(shop, moment) == [None, 10.0, None, None]
        other = several | {"customer_id": 2, "dollar_value": 20.0}
        send(moment + MINUTE, other | {"dollar_value": 1e30})  # a rule stops it
        send(moment + 2 * MINUTE, other)
    assert spent(shop, moment + DAY) == [None, None, None, 20.0]
    shop.land([other], moment + DAY)
    assert spent(shop, moment + DAY) == [None, None, None, 20.0]
    shop.land([order(1, 2, NEW_YEAR + 9 * DAY, cents=3_000)], moment + DAY)
    assert spent(shop, moment + DAY) == [None, None, 30.0, None]


def test_a_monthly_row_is_unknown_when_it_is_more_than_31_days_old(shop):
    refresh_online(shop.settings, shop.dataset, shop.raw, clock=lambda: STARTS[24])
    last = NEW_YEAR.replace(year=2127)
    assert STARTS[24] == last
    assert spent(shop, last + 31 * DAY)[0] == 10.0
    assert spent(shop, last + 31 * DAY + TICK)[0] is None


def test_every_entity_is_found_by_its_rows(shop):
    later = order(2, 3, FEBRUARY + DAY, cds=2)
    shop.land([later], MARCH)
    views = dict.fromkeys(shop.dataset.views, KEY)
    two = {"customer_id": 3, "basket": "several"}
    one = {"customer_id": 1, "basket": "single"}
    assert entities(shop.settings, views, KEY, FEBRUARY).to_pylist() == [one]
    assert entities(shop.settings, views, KEY).to_pylist() == [two, one]
    assert entities(shop.settings, views, ["shop_code"]).num_rows == 0


def test_one_text_names_one_entity():
    assert entity_text({"customer_id": 4}) == "4"
    assert entity_text({"basket": "a, b"}) == "a, b"
    both = {"customer_id": 4, "basket": '1", "customer_id": 5'}
    assert json.loads(entity_text(both)) == both
    assert entity_text(both) == entity_text(dict(reversed(both.items())))


def test_all_hashes_of_a_customer_are_found_whatever_basket_and_those_of_no_other(
    template, spend
):
    shop = Shop(template.restore(), spend)
    shop.land(
        [order(n, n % 5, STARTS[3], cds=1 + n % 2) for n in range(40)], ARRIVALS[0]
    )
    with closing(OnlineValues(shop.settings, spend, shop.raw)) as online:
        names = online.hashes_of("customer_id", 4)
        assert len(names) == 2
        assert online.hashes_of("customer_id", 99) == set()
        assert online.hashes_of("store_id", 4) == set()
        online.redis.delete(*names)
    asked = [(customer, kind) for customer in (3, 4) for kind in ("single", "several")]
    found = shop.online(asked, ARRIVALS[0])
    assert [found[key] is None for key in asked] == [False, False, True, True]

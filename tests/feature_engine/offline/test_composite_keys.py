"""The second use case's features: keys of two columns, one derived; monthly rows that expire."""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib import import_module
from operator import itemgetter

import ibis
import pandas as pd
import pytest

from core.project import PROJECT
from feature_engine.ingest.pipeline import catch_up
from feature_engine.offline.raw import open_raw, raw_table
from feature_engine.online.refresh import refresh_online
from feature_engine.online.values import OnlineValues
from feature_engine.online.window_ends import WindowEnds
from feature_repo import datasets
from feature_repo.labels import label_rows
from feature_repo.published.service import PublishedService
from feature_repo.published.store import publish_beside
from tests.support.feature_engine.installation import land_orders, online_reader
from tests.support.feature_engine.shop import DAY, HOUR, order

FOLDER = PROJECT / "tests/training/spend/feature_repo/datasets"
KEY = ("customer_id", "basket")
SERVICE = "next_quarter_spend_v1"
NAMES = ("orders_3m", "spend_3m", "orders_12m", "spend_12m", "months_since_last_order",
         "avg_order_value", "order_kind")  # fmt: skip
key_of = itemgetter(*KEY)
values_of = itemgetter(*NAMES)
TICK = timedelta(microseconds=1)
STARTS = [datetime(2125 + n // 12, n % 12 + 1, 1, tzinfo=UTC) for n in range(36)]
JANUARY, FEBRUARY, MARCH, APRIL = STARTS[12:16]
NEXT_JANUARY = STARTS[24]
KEYS = [(1, "single"), (1, "several"), (2, "single"), (2, "several")]


@pytest.fixture(scope="module")
def spend():
    """The dataset as the tutorial puts it into place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "__path__", [*datasets.__path__, str(FOLDER)])
        yield import_module("feature_repo.datasets.spend").SPEND


class Shop:
    """Orders that land in batches, in an installation of their own, online after each."""

    def __init__(self, settings, dataset):
        publish_beside(settings, dataset)
        self.settings = settings
        self.dataset = dataset
        self.raw = raw_table(settings, dataset)
        self.service = PublishedService(settings, SERVICE)

    def land(self, orders, arrival):
        land_orders(self.settings, self.dataset, orders, arrival)
        with closing(OnlineValues(self.settings, self.dataset, self.raw)) as online:
            catch_up(online, arrival)

    def online(self, keys, at):
        """Return the values of each key; None of one that is unknown."""
        reader = online_reader(self.settings, SERVICE, NAMES)
        rows = reader.read([dict(zip(KEY, key, strict=True)) for key in keys], at)
        reader.close()
        return [row and values_of(row) for row in rows]

    def offline(self, keys, at):
        frame = pd.DataFrame(keys, columns=[*KEY]).assign(event_timestamp=at)
        rows = self.service.historical(frame).to_pylist()
        values = {key_of(row): values_of(row) for row in rows}
        nothing = (None,) * len(NAMES)
        return [None if values[key] == nothing else values[key] for key in keys]

    def spent(self, at):
        """Return what each of the four keys spent in twelve months."""
        return [row and row[3] for row in self.online(KEYS, at)]


def test_values_of_a_key_of_two_columns_are_the_same_online_offline_and_by_hand(
    applied, spend
):
    shop = Shop(applied, spend)
    assert shop.online([], NEXT_JANUARY) == []
    december_order = order(1, 1, JANUARY - 20 * DAY, 10.0)
    orders = [
        december_order,
        order(2, 1, JANUARY, 20.0, cds=3),
        order(3, 2, JANUARY + 14 * DAY, 30.0),
    ]
    shop.land(orders, FEBRUARY)
    assert shop.spent(FEBRUARY) == [10.0, 20.0, 30.0, None]
    late_order = order(4, 2, FEBRUARY + TICK, 5.0)
    shop.land([december_order | {"number_of_cds": 2}, late_order], MARCH)
    keys = KEYS[:3]
    expiry = NEXT_JANUARY + 31 * DAY
    values_in_march = [
        None,
        (2, 30.0, 2, 30.0, 2, 15.0, "several"),
        (2, 35.0, 2, 35.0, 0, 17.5, "single"),
    ]
    assert shop.online(keys, MARCH) == values_in_march
    assert shop.offline(keys, MARCH) == values_in_march
    for moment, values in (
        (JANUARY - TICK, None),
        (JANUARY, (2, 30.0, 2, 30.0, 0, 15.0, "several")),
        (APRIL - TICK, (2, 30.0, 2, 30.0, 2, 15.0, "several")),
        (APRIL, (0, 0.0, 2, 30.0, 3, 15.0, "several")),
        (expiry, (0, 0.0, 0, 0.0, 12, None, "several")),
        (expiry + TICK, None),
    ):
        assert shop.offline([(1, "several")], moment) == [values], moment
    with closing(OnlineValues(shop.settings, spend, shop.raw)) as online:
        refresh_online(online, clock=lambda: expiry)
    for moment in (expiry, expiry + TICK):
        assert shop.online(keys, moment) == shop.offline(keys, moment)
    raw_rows = open_raw(ibis.duckdb.connect(), shop.raw)
    rows_of_label = label_rows(raw_rows, spend.labels["spend_90d"], [FEBRUARY])
    label_values = {
        key_of(row): row["label"] for row in rows_of_label.to_pyarrow().to_pylist()
    }
    assert label_values == {(1, "several"): 0.0, (2, "single"): 5.0}


def test_windows_end_in_time_and_hashes_are_found_by_a_part_of_a_key_of_two_columns(
    applied, spend
):
    """One customer has rows in the view, one in the raw table alone."""
    month = STARTS[30]
    before = month - HOUR / 2
    shop = Shop(applied, spend)
    orders = [
        order(1, 1, STARTS[29] - DAY),
        order(2, 1, STARTS[29] + DAY),
        order(3, 1, STARTS[29] - DAY, cds=2),
    ]
    shop.land(orders, before)
    raw_order = order(4, 2, STARTS[29] + DAY, cds=2)
    land_orders(shop.settings, spend, [raw_order], before)
    with closing(OnlineValues(shop.settings, spend, shop.raw)) as online:
        ends = WindowEnds(online)
        values = online.compute_entities([2], before)
        online.writer.write(values, shop.raw.version)
        ends.add(values)
        for moment, spent in (
            (before, [10.0, 10.0, None, None]),
            (month, [20.0, 10.0, None, 10.0]),
        ):
            ends.step(moment)
            assert shop.spent(moment) == spent
        assert online.hashes_of("customer_id", 99) == set()
        assert online.hashes_of("store_id", 1) == set()
        online.redis.delete(*online.hashes_of("customer_id", 1))
    assert shop.spent(month) == [None, None, None, 10.0]

"""One value at (customer, moment): brute force, feature rows, Feast's history and online agree."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate, count
from random import Random

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.entities import last_of_key
from feature_repo.ingest import catch_up, raw_table
from feature_repo.parity import REDIS_SECONDS, same
from feature_repo.refresh import refresh_online
from feature_repo.service import PublishedService
from feature_repo.store import open_store
from feature_repo.views import write_views
from tests.feature_repo.test_incremental import rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("spark_ends_here"),
]
ORDERS, SPEC = load_dataset("orders"), load_spec("customer_churn_model")
NAMES = (*SPEC.features,)
TIME = pa.timestamp("us", tz="UTC")
EPOCH, TICK = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

# Times are whole microseconds since the epoch, amounts whole cents: brute force is exact.
HOUR, DAY = 3_600_000_000, 86_400_000_000
BEGIN = (datetime(2126, 1, 1, tzinfo=UTC) - EPOCH) // TICK
ARRIVALS = [BEGIN + days * DAY for days in (60, 170, 280, 400)]
"""When the batches land. Later than the last, windows empty by themselves."""
EDGES = [days * DAY + tick for days in (0, 30, 90) for tick in (-1, 0, 1)]
STEPS = [0, 0, 1, HOUR, DAY // 2, DAY, *EDGES[3:], 28 * DAY, 91 * DAY, 150 * DAY]
"""From one order to the next: ties, bursts, days, edges of windows and files, longer than any."""
CENTS = [0, 1, 10, 1_496, 128_601]
CUSTOMERS = range(1, 201)


@dataclass(frozen=True)
class Order:
    number: int
    customer: int
    at: int
    cents: int


def batches_of(chance: Random) -> list[list[Order]]:
    """200 customers' orders as they arrive: most in time, some late, again, or with other content.

    An arrival is the newest of its key, whatever it says. The third batch corrects nothing: a
    correction rewrites everything online, and would hide a late row that is missed.
    """
    batches: list[list[Order]] = [[] for _ in ARRIVALS]
    last, number = len(ARRIVALS) - 1, count(1)
    for customer in CUSTOMERS:
        start = BEGIN + chance.choice([chance.randrange(90), chance.randrange(300)]) * DAY
        start += chance.choice([0, 0, 1, -1, chance.randrange(DAY)])
        steps = chance.choices(chance.choices(STEPS, k=3), k=chance.randint(0, 8))
        for at in accumulate(steps, initial=start):
            if at > ARRIVALS[-1]:
                break
            due = bisect_left(ARRIVALS, at)
            landed = min(due + chance.choice([0, 0, 0, 0, 1, 2]), last)
            order = Order(next(number), customer, at, chance.choice(CENTS))
            batches[landed].append(order)
            draw = chance.random()
            if draw < 0.15:
                batches[chance.randint(landed, last)].append(order)
            elif draw < 0.3:
                of = chance.choice([landed, *(batch for batch in (1, last) if batch > landed)])
                batches[of].append(changed(chance, order))
                if draw < 0.2:
                    batches[last].append(order)
    return batches


def changed(chance: Random, order: Order) -> Order:
    """The same order corrected: another amount, date (earlier, so that it is due) or customer."""
    return chance.choice([
        replace(order, cents=chance.choice(CENTS)),
        replace(order, at=order.at - chance.choice([1, DAY, 30 * DAY])),
        replace(order, customer=chance.choice(CUSTOMERS)),
    ])  # fmt: skip


def by_customer(orders) -> dict[int, list[Order]]:
    found = defaultdict(list)
    for order in orders:
        found[order.customer].append(order)
    return found


def brute_force(orders: list[Order], at: int) -> dict[str, object]:
    """What the service says of a customer at `at`, from its orders and nothing else."""
    past = [order for order in orders if order.at <= at]
    if not past:
        return dict.fromkeys(NAMES)
    value: dict[str, object] = {}
    for days in (30, 90):
        window = [order.cents for order in past if order.at > at - days * DAY]
        value[f"total_orders_{days}d"] = len(window)
        value[f"total_spend_{days}d"] = sum(window) / 100
    total = sum(order.cents for order in past)
    return value | {
        "lifetime_orders": len(past),
        "lifetime_value": total / 100,
        "avg_order_value": total / 100 / len(past),
        "customer_segment": "new" if len(past) == 1 else "repeat" if len(past) < 5 else "loyal",
        "days_since_last_order": (at - max(order.at for order in past)) // DAY,
        "customer_tenure_days": (at - min(order.at for order in past)) // DAY,
    }


def land(raw, batch: list[Order], arrival: int) -> None:
    """Merge a batch as ingest does."""
    rows = pa.table(
        [
            [order.number for order in batch],
            [order.customer for order in batch],
            pa.array([order.at for order in batch], pa.int64()).cast(TIME),
            [1] * len(batch),
            [order.cents / 100 for order in batch],
        ],
        ORDERS.schema,
    )
    rows = last_of_key(rows, ORDERS.key)
    known_at = pa.array([arrival] * len(rows), pa.int64()).cast(TIME)
    raw.merge(rows.append_column("ingested_at", known_at), ORDERS.key, ORDERS.schema.names)


def from_rows(settings, asked) -> dict[tuple[int, int], dict[str, object]]:
    """Of each (customer, moment) the newest feature row at or before it."""
    rows = rows_of(settings)
    times = rows["event_timestamp"].cast(pa.int64()).to_pylist()
    customers, found = defaultdict[int, list](list), {}
    for at, row in zip(times, rows.drop_columns(["event_timestamp"]).to_pylist(), strict=True):
        customers[row["customer_id"]].append((at, row))
    for customer, at in asked:
        position = bisect_right(customers[customer], at, key=lambda pair: pair[0])
        if not position:
            found[customer, at] = dict.fromkeys(NAMES)
            continue
        row = customers[customer][position - 1][1]
        row["days_since_last_order"] = (at - row["last_order_us"]) // DAY
        row["customer_tenure_days"] = (at - row["first_order_us"]) // DAY
        found[customer, at] = {name: row[name] for name in NAMES}
    return found


def historical(service: PublishedService, asked) -> pa.Table:
    """Feast's answer in the order of (customer, moment)."""
    frame = pd.DataFrame(asked, columns=["customer_id", "as_of"])
    frame["event_timestamp"] = pd.to_datetime(frame["as_of"], unit="us", utc=True)
    joined = service.historical(frame)
    assert len(joined) == len(asked)
    times = joined["event_timestamp"].cast(TIME).cast(pa.int64())
    return joined.select(["customer_id", *NAMES]).append_column("at", times).sort_by(
        [("customer_id", "ascending"), ("at", "ascending")]
    )  # fmt: skip


def from_feast(table: pa.Table) -> dict[tuple[int, int], dict[str, object]]:
    rows = table.to_pylist()
    return {(r["customer_id"], r["at"]): {name: r[name] for name in NAMES} for r in rows}


def online(settings, at: int) -> dict[tuple[int, int], dict[str, object]]:
    store = open_store(settings, REDIS_SECONDS)
    rows = [{"customer_id": customer, "as_of": at} for customer in CUSTOMERS]
    service = store.get_feature_service(SPEC.feature_service)
    found = store.get_online_features(service, rows).to_dict()
    return {(customer, at): {name: found[name][n] for name in NAMES}
            for n, customer in enumerate(found["customer_id"])}  # fmt: skip


def moment(at: int) -> datetime:
    return EPOCH + at * TICK


def agree(orders, **answers) -> None:
    """Each answer is that of brute force: ints and strings exactly, floats to 1e-9."""
    mine, differ = by_customer(orders), []
    for where, found in answers.items():
        for (customer, at), values in found.items():
            expected = brute_force(mine[customer], at)
            differ += [
                f"{where}: customer {customer} at {moment(at)} {name}: {values[name]!r},"
                f" expected {wanted!r} of {mine[customer]}"
                for name, wanted in expected.items()
                if type(values[name]) is not type(wanted) or not same(values[name], wanted)
            ]
    assert not differ, "\n".join([f"{len(differ)} differences, such as", *differ[:3]])


def asked_of(chance: Random, orders) -> list[tuple[int, int]]:
    """Any moments, those of each order and of its leaving a window, and those beside them."""
    asked = {(order.customer, order.at + edge) for order in orders for edge in EDGES}
    asked |= {(who, BEGIN + chance.randrange(500 * DAY)) for who in CUSTOMERS for _ in range(2)}
    return sorted(asked)


def any_seed(examples: int):
    """Seeds do not shrink: the first differences are told with their customer's orders."""
    phases = [Phase.reuse, Phase.generate]
    few = hypothesis_settings(max_examples=examples, deadline=None, phases=phases)
    return lambda test: few(given(seed=st.integers(0, 2**32))(test))


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=pytest.mark.nightly)])
@any_seed(2)
def test_four_answers_agree_for_any_orders_in_any_arrival(template, engine, seed):
    settings = template.restore().model_copy(update={"engine": engine})
    chance = Random(seed)
    batches, store = batches_of(chance), PublishedService(settings, SPEC.feature_service)
    raw, standing = raw_table(settings, ORDERS), dict[int, Order]()
    for batch, arrival in zip(batches, ARRIVALS, strict=True):
        land(raw, batch, arrival)
        catch_up(settings, ORDERS, raw, moment(arrival))
        standing |= {order.number: order for order in batch}
        agree(standing.values(), online=online(settings, arrival))

    orders, everything = [*standing.values()], [order for batch in batches for order in batch]
    asked = asked_of(chance, everything)
    agree(orders, rows=from_rows(settings, asked), historical=from_feast(historical(store, asked)))
    for at in sorted(chance.sample([at for _, at in asked if at > ARRIVALS[-1]], 3)):
        refresh_online(settings, ORDERS, raw, moment(at), clock=lambda at=at: moment(at))
        agree(orders, online=online(settings, at))


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=pytest.mark.nightly)])
@any_seed(2)
def test_what_happens_later_changes_nothing_before(template, engine, seed):
    """Rows after a moment added, changed, removed: up to it every value is the same to the bit."""
    settings = template.restore().model_copy(update={"engine": engine})
    chance = Random(seed)
    orders = [order for batch in batches_of(chance) for order in batch]
    raw, store = raw_table(settings, ORDERS), PublishedService(settings, SPEC.feature_service)
    land(raw, orders, ARRIVALS[-1])
    now = chance.choice(orders).at + chance.choice(EDGES)
    asked = [(customer, at) for customer, at in asked_of(chance, orders) if at <= now]

    def past() -> tuple[pa.Table, pa.Table]:
        write_views(settings, ORDERS, raw)
        rows = rows_of(settings)
        return rows.filter(pa.compute.field("event_timestamp") <= moment(now)), historical(
            store, asked
        )

    before = past()
    standing = {order.number: order for order in orders}
    ahead = [order for order in standing.values() if order.at > now]
    changes = [replace(order, cents=order.cents + 1, at=order.at + DAY) for order in ahead[::3]]
    changes += [replace(order, customer=chance.choice(CUSTOMERS)) for order in ahead[1::3]]
    more = [Order(10**6 + who, who, now + chance.choice([1, DAY]), 1) for who in CUSTOMERS]
    land(raw, [*changes, *more], ARRIVALS[-1] + DAY)
    for found, wanted in zip(past(), before, strict=True):
        assert found.equals(wanted)
    raw._open().delete(f"order_ts > '{moment(now).isoformat()}'")
    for found, wanted in zip(past(), before, strict=True):
        assert found.equals(wanted)

"""One value at (customer, moment): brute force, Feast's history and the online store agree."""

from __future__ import annotations

from bisect import bisect_left
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

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.usefixtures("spark_ends_here"),
]
ORDERS = load_dataset("orders")
SPEC = load_spec("customer_churn_model")
NAMES = list(SPEC.features)
TIME = pa.timestamp("us", tz="UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)

# Times are whole microseconds since the epoch, amounts whole cents: brute force is exact.
HOUR = 3_600_000_000
DAY = 24 * HOUR
BEGIN = (datetime(2126, 1, 1, tzinfo=UTC) - EPOCH) // TICK
ARRIVALS = [BEGIN + days * DAY for days in (60, 170, 280, 400)]
"""When the batches land. Later than the last, windows empty by themselves."""
LAST_BATCH = len(ARRIVALS) - 1
EDGES = [
    -1,
    0,
    1,
    30 * DAY - 1,
    30 * DAY,
    30 * DAY + 1,
    90 * DAY - 1,
    90 * DAY,
    90 * DAY + 1,
]
STEPS = [0, 0, 1, HOUR, DAY // 2, DAY, *EDGES[3:], 28 * DAY, 91 * DAY, 150 * DAY]
"""From one order to the next: ties, bursts, days, edges of windows and files, longer than any."""
CENTS = [0, 1, 10, 1_496, 128_601]
CUSTOMERS = range(1, 201)
ENGINES = ["duckdb", pytest.param("spark", marks=pytest.mark.nightly)]


@dataclass(frozen=True)
class Order:
    number: int
    customer: int
    at: int
    cents: int


def batches_of(chance):
    """Return orders as they arrive: most in time, some late, again, or with other content."""
    batches = [[] for _ in ARRIVALS]
    numbers = count(1)
    for customer in CUSTOMERS:
        start = BEGIN + chance.randrange(300) * DAY + chance.choice([0, 0, 1, -1, HOUR])
        steps = chance.choices(chance.choices(STEPS, k=3), k=chance.randint(0, 8))
        for at in accumulate(steps, initial=start):
            if at > ARRIVALS[-1]:
                break
            order = Order(next(numbers), customer, at, chance.choice(CENTS))
            due_batch = bisect_left(ARRIVALS, at)
            landing = min(due_batch + chance.choice([0, 0, 0, 0, 1, 2]), LAST_BATCH)
            batches[landing].append(order)
            correction = corrected(chance, order)
            repeats = [[], [], [], [order], [correction], [correction, order]]
            batches[chance.randint(landing, LAST_BATCH)] += chance.choice(repeats)
    return batches


def corrected(chance, order):
    """Return the order with another amount, date (earlier, so that it is due) or customer."""
    corrections = [
        replace(order, cents=chance.choice(CENTS)),
        replace(order, at=order.at - chance.choice([1, DAY, 30 * DAY])),
        replace(order, customer=chance.choice(CUSTOMERS)),
    ]
    return chance.choice(corrections)


def brute_force(orders, at):
    """Return the features of a customer at `at`, from its orders and nothing else."""
    past = [order for order in orders if order.at <= at]
    if not past:
        return dict.fromkeys(NAMES)
    features = {}
    for days in (30, 90):
        window = [order.cents for order in past if order.at > at - days * DAY]
        features[f"total_orders_{days}d"] = len(window)
        features[f"total_spend_{days}d"] = sum(window) / 100
    total = sum(order.cents for order in past) / 100
    repeat_segment = "repeat" if len(past) < 5 else "loyal"
    return features | {
        "lifetime_orders": len(past),
        "lifetime_value": total,
        "avg_order_value": total / len(past),
        "customer_segment": "new" if len(past) == 1 else repeat_segment,
        "days_since_last_order": (at - max(order.at for order in past)) // DAY,
        "customer_tenure_days": (at - min(order.at for order in past)) // DAY,
    }


def land(raw, batch, arrival):
    """Merge a batch as ingest does."""
    times = pa.array([order.at for order in batch], pa.int64())
    columns = [
        [order.number for order in batch],
        [order.customer for order in batch],
        times.cast(TIME),
        [1] * len(batch),
        [order.cents / 100 for order in batch],
    ]
    rows = last_of_key(pa.table(columns, ORDERS.schema), ORDERS.key)
    arrivals = pa.array([moment(arrival)] * len(rows), TIME)
    raw.merge(
        rows.append_column("ingested_at", arrivals), ORDERS.key, ORDERS.schema.names
    )


def historical(service, reads):
    """Return Feast's answers in the order of (customer, moment)."""
    frame = pd.DataFrame(reads, columns=["customer_id", "as_of"])
    frame["event_timestamp"] = pd.to_datetime(frame["as_of"], unit="us", utc=True)
    rows = service.historical(frame)
    assert len(rows) == len(reads)
    order = [("customer_id", "ascending"), ("as_of", "ascending")]
    return rows.select(["customer_id", "as_of", *NAMES]).sort_by(order)


def online(settings, at):
    """Return what the online store answers about every customer at `at`."""
    store = open_store(settings, REDIS_SECONDS)
    rows = [{"customer_id": customer, "as_of": at} for customer in CUSTOMERS]
    service = store.get_feature_service(SPEC.feature_service)
    answers = store.get_online_features(service, rows).to_dict()
    return pa.table(answers | {"as_of": [at] * len(rows)})


def moment(at):
    return EPOCH + at * TICK


def differences(orders, answers):
    """Name what is not brute force's: whole numbers and strings exactly, floats to 1e-9."""
    orders_of = defaultdict(list)
    for order in orders:
        orders_of[order.customer].append(order)
    lines = []
    for row in answers.to_pylist():
        customer = row["customer_id"]
        expected = brute_force(orders_of[customer], row["as_of"])
        for name, value in expected.items():
            if type(row[name]) is not type(value) or not same(row[name], value):
                place = f"customer {customer} at {moment(row['as_of'])} {name}"
                source = f"expected {value!r} of {orders_of[customer]}"
                lines.append(f"{place}: {row[name]!r}, {source}")
    return lines


def reads_of(chance, orders):
    """Return any moments, those of each order and of its leaving a window, and those beside."""
    reads = {(order.customer, order.at + edge) for order in orders for edge in EDGES}
    reads |= {(customer, BEGIN + chance.randrange(500 * DAY)) for customer in CUSTOMERS}
    return sorted(reads)


# Seeds do not shrink: the first differences are shown with their customer's orders.
@pytest.mark.parametrize("engine", ENGINES)
@hypothesis_settings(
    max_examples=2, deadline=None, phases=[Phase.reuse, Phase.generate]
)
@given(seed=st.integers(0, 2**32))
def test_three_answers_agree_for_any_orders_in_any_arrival(template, engine, seed):
    settings = template.restore().model_copy(update={"engine": engine})
    chance = Random(seed)
    batches = batches_of(chance)
    raw = raw_table(settings, ORDERS)
    landed = {}
    for batch, arrival in zip(batches, ARRIVALS, strict=True):
        land(raw, batch, arrival)
        catch_up(settings, ORDERS, raw, moment(arrival))
        landed |= {order.number: order for order in batch}
        assert differences(landed.values(), online(settings, arrival)) == []

    reads = reads_of(chance, [order for batch in batches for order in batch])
    service = PublishedService(settings, SPEC.feature_service)
    assert differences(landed.values(), historical(service, reads)) == []
    later = [at for _, at in reads if at > ARRIVALS[-1]]
    for at in sorted(chance.sample(later, 3)):
        refresh_online(settings, ORDERS, raw, clock=lambda at=at: moment(at))
        assert differences(landed.values(), online(settings, at)) == []

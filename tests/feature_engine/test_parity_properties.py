"""One value at (customer, moment): brute force, Feast's history and the online store agree."""

from bisect import bisect_left
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import accumulate, count
from math import fsum
from random import Random

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.timestamps import microseconds
from feature_engine.ingest.pipeline import catch_up
from feature_engine.online.refresh import refresh_online
from feature_engine.online.values import OnlineValues
from feature_engine.parity import REDIS_SECONDS
from feature_repo.published.service import PublishedService, is_same_value
from feature_repo.published.store import open_store
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, SPEC, order

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.usefixtures("spark_ends_here"),
]
NAMES = list(SPEC.features)
TICK = timedelta(microseconds=1)
NOW = timedelta(0)
BEGIN = datetime(2126, 1, 1, tzinfo=UTC)
ARRIVALS = [BEGIN + days * DAY for days in (60, 170, 280, 400)]
"""When the batches land. Later than the last, windows empty by themselves."""
LAST_BATCH = len(ARRIVALS) - 1
EDGES = [days * DAY + tick for days in (0, 30, 90) for tick in (-TICK, NOW, TICK)]
STEPS = [NOW, NOW, TICK, HOUR, DAY / 2, DAY, *EDGES[3:], 28 * DAY, 91 * DAY, 150 * DAY]
"""From one order to the next: ties, bursts, days, edges of windows and files, longer than any."""
AMOUNTS = [0.0, 0.01, 0.1, 14.96, 1286.01]
CUSTOMERS = range(1, 201)


def batches_of(chance):
    """Return orders as they arrive: most in time, some late, again, or with other content."""
    batches = [[] for _ in ARRIVALS]
    numbers = count(1)
    for customer in CUSTOMERS:
        start = BEGIN + chance.randrange(300) * DAY
        start += chance.choice([NOW, NOW, TICK, -TICK, HOUR])
        steps = chance.choices(chance.choices(STEPS, k=3), k=chance.randint(0, 8))
        for at in accumulate(steps, initial=start):
            if at > ARRIVALS[-1]:
                break
            new_order = order(next(numbers), customer, at, chance.choice(AMOUNTS))
            due_batch = bisect_left(ARRIVALS, at)
            landing = min(due_batch + chance.choice([0, 0, 0, 0, 1, 2]), LAST_BATCH)
            batches[landing].append(new_order)
            correction = new_order | change(chance, at)
            repeats = [[], [], [], [new_order], [correction], [correction, new_order]]
            batches[chance.randint(landing, LAST_BATCH)] += chance.choice(repeats)
    return batches


def change(chance, at):
    """Return another amount, time (earlier, so that it is due) or customer of an order."""
    changes = [
        {"dollar_value": chance.choice(AMOUNTS)},
        {"order_ts": at - chance.choice([TICK, DAY, 30 * DAY])},
        {"customer_id": chance.choice(CUSTOMERS)},
    ]
    return chance.choice(changes)


def brute_force(orders, at):
    """Return the features of a customer at `at`, from its orders and nothing else."""
    amounts = [
        (row["order_ts"], row["dollar_value"])
        for row in orders
        if row["order_ts"] <= at
    ]
    if not amounts:
        return dict.fromkeys(NAMES)
    features = {}
    for days in (30, 90):
        window = [amount for moment, amount in amounts if moment > at - days * DAY]
        features[f"total_orders_{days}d"] = len(window)
        features[f"total_spend_{days}d"] = fsum(window)
    total = fsum(amount for _, amount in amounts)
    repeat_segment = "repeat" if len(amounts) < 5 else "loyal"
    return features | {
        "lifetime_orders": len(amounts),
        "lifetime_value": total,
        "avg_order_value": total / len(amounts),
        "customer_segment": "new" if len(amounts) == 1 else repeat_segment,
        "days_since_last_order": (at - max(amounts)[0]).days,
        "customer_tenure_days": (at - min(amounts)[0]).days,
    }


def online(settings, at):
    """Return what the online store answers about every customer at `at`."""
    store = open_store(settings, REDIS_SECONDS)
    rows = [{"customer_id": n, "as_of": microseconds(at)} for n in CUSTOMERS]
    service = store.get_feature_service(SPEC.feature_service)
    answers = store.get_online_features(service, rows).to_dict()
    return pa.table(answers | {"event_timestamp": [at] * len(rows)})


def differences(orders, answers):
    """Name what is not brute force's: whole numbers and strings exactly, floats to 1e-9."""
    orders_of = defaultdict(list)
    for row in orders:
        orders_of[row["customer_id"]].append(row)
    lines = []
    for row in answers.to_pylist():
        own_orders = orders_of[row["customer_id"]]
        for name, value in brute_force(own_orders, row["event_timestamp"]).items():
            if type(row[name]) is not type(value) or not is_same_value(
                row[name], value
            ):
                lines.append(f"{name}: expected {value!r} in {row} of {own_orders}")
    return lines


def reads_of(chance, orders):
    """Return any moments, those of each order and of its leaving a window, and those beside."""
    reads = {
        (row["customer_id"], row["order_ts"] + edge) for row in orders for edge in EDGES
    }
    reads |= {(n, BEGIN + chance.random() * 500 * DAY) for n in CUSTOMERS}
    return sorted(reads)


# Seeds do not shrink: the first differences are shown with their customer's orders.
@pytest.mark.journey
@hypothesis_settings(
    max_examples=2, deadline=None, phases=[Phase.reuse, Phase.generate]
)
@given(seed=st.integers(0, 2**32))
def test_offline_online_and_brute_force_values_agree_for_any_orders_in_any_arrival(
    template, seed
):
    check_that_values_agree(template.restore(), seed)


@pytest.mark.nightly
def test_values_on_spark_agree_with_brute_force_for_the_orders_of_the_day(template):
    settings = template.restore().model_copy(update={"engine": "spark"})
    check_that_values_agree(settings, seed=datetime.now(UTC).toordinal())


def check_that_values_agree(settings, seed):
    chance = Random(seed)
    batches = batches_of(chance)
    landed = {}
    for batch, arrival in zip(batches, ARRIVALS, strict=True):
        raw = land_orders(settings, ORDERS, batch, arrival)
        if arrival == ARRIVALS[2]:
            raw.compact()
        with closing(OnlineValues(settings, ORDERS, raw)) as values:
            catch_up(values, arrival)
        landed |= {row["order_id"]: row for row in batch}
        assert differences(landed.values(), online(settings, arrival)) == []

    reads = reads_of(chance, [row for batch in batches for row in batch])
    frame = pd.DataFrame(reads, columns=["customer_id", "event_timestamp"])
    frame["as_of"] = frame["event_timestamp"].map(microseconds)
    rows = PublishedService(settings, SPEC.feature_service).historical(frame)
    assert len(rows) == len(reads)
    assert differences(landed.values(), rows) == []
    later = [at for _, at in reads if at > ARRIVALS[-1]]
    for at in sorted(chance.sample(later, 3)):
        with closing(OnlineValues(settings, ORDERS, raw)) as values:
            refresh_online(values, clock=lambda at=at: at)
        assert differences(landed.values(), online(settings, at)) == []

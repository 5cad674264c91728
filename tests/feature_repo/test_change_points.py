"""Feature rows against brute force from the orders themselves, at any moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.datasets.orders import D90, D180, FEATURES, churned_90d

TIME = pa.timestamp("us", tz="UTC")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)

# Days and microseconds beside them, so that window edges, ties and same-day orders are common.
moments = st.builds(
    lambda day, tick: BEGIN + timedelta(days=day) + tick * TICK,
    st.integers(0, 240),
    st.sampled_from([0, 0, 0, 1, -1, 43_200_000_000]),
)
histories = st.lists(
    st.lists(
        st.tuples(moments, st.sampled_from([0.0, 0.01, 14.96, 1286.01])), min_size=1, max_size=8
    ),
    min_size=1,
    max_size=40,
)


ibis.get_backend().raw_sql("SET TimeZone = 'UTC'")


def orders_table(customers: list[list[tuple[datetime, float]]]) -> ibis.Table:
    rows = [(n, at, amount) for n, history in enumerate(customers, 1) for at, amount in history]
    return ibis.memtable(
        pa.table(
            {
                "customer_id": pa.array([row[0] for row in rows], pa.int64()),
                "order_ts": pa.array([row[1] for row in rows], TIME),
                "dollar_value": pa.array([row[2] for row in rows], pa.float64()),
                "ingested_at": pa.array([row[1] for row in rows], TIME),
            }
        )
    )


def brute_force(history: list[tuple[datetime, float]], at: datetime) -> dict[str, object]:
    past = [order for order in history if order[0] <= at]
    value: dict[str, object] = {}
    for days in (30, 90):
        window = [amount for when, amount in past if when > at - timedelta(days=days)]
        value[f"total_orders_{days}d"] = len(window)
        value[f"total_spend_{days}d"] = pytest.approx(sum(window), rel=1e-9)
    total = sum(amount for _, amount in past)
    value["lifetime_orders"] = len(past)
    value["lifetime_value"] = pytest.approx(total, rel=1e-9)
    value["avg_order_value"] = pytest.approx(total / len(past), rel=1e-9)
    value["customer_segment"] = "new" if len(past) == 1 else "repeat" if len(past) < 5 else "loyal"
    value["last_order_us"] = int((max(past)[0] - datetime(1970, 1, 1, tzinfo=UTC)) / TICK)
    value["first_order_us"] = int((min(past)[0] - datetime(1970, 1, 1, tzinfo=UTC)) / TICK)
    return value


@settings(max_examples=15, deadline=None)
@given(histories, st.lists(moments, min_size=1, max_size=5))
def test_the_newest_row_at_any_moment_is_the_value_from_the_orders(customers, asked):
    rows = FEATURES(orders_table(customers)).to_pyarrow().to_pylist()
    by_customer: dict[int, list[dict[str, object]]] = {}
    for row in sorted(rows, key=lambda row: row["event_timestamp"]):
        by_customer.setdefault(row["customer_id"], []).append(row)
    for customer, history in enumerate(customers, 1):
        edges = [when + timedelta(days=d) + tick for when, _ in history
                 for d in (0, 30, 90) for tick in (-TICK, timedelta(0), TICK)]  # fmt: skip
        for at in [*asked, *edges]:
            known = [r for r in by_customer[customer] if r["event_timestamp"] <= at]
            if not known:
                assert not [order for order in history if order[0] <= at]
                continue
            expected = brute_force(history, at)
            assert {name: known[-1][name] for name in expected} == expected


def test_rows_of_one_instant_are_one_row():
    at = BEGIN
    rows = FEATURES(orders_table([[(at, 1.0), (at, 2.0)]])).to_pyarrow().to_pylist()
    first = [row for row in rows if row["event_timestamp"] == at]
    assert len(first) == 1
    assert first[0]["total_spend_30d"] == 3.0


@pytest.mark.parametrize(
    ("orders", "label"),
    [
        ([-D180], None),  # the window is open at its old end
        ([-D180 + TICK], 1),
        ([timedelta(0)], 1),  # an order at the snapshot itself belongs to the past
        ([timedelta(0), TICK], 0),
        ([timedelta(0), D90], 0),
        ([timedelta(0), D90 + TICK], 1),
        ([TICK], None),  # unknown before the snapshot
    ],
)
def test_churn_is_no_order_within_the_horizon_of_those_active_before(orders, label):
    snapshot = BEGIN + timedelta(days=200)
    table = orders_table([[(snapshot + offset, 1.0) for offset in orders]])
    snapshots = ibis.memtable(pa.table({"event_timestamp": pa.array([snapshot], TIME)}))
    rows = churned_90d(table, snapshots).to_pyarrow().to_pylist()
    assert [row["label"] for row in rows] == ([] if label is None else [label])

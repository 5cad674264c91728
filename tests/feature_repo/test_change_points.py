"""The shipped features and label of orders, at single moments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import strategies as st

from core.timestamps import microseconds
from feature_repo.datasets.orders import D90, D180, FEATURES, churned_90d
from feature_repo.entities import newest_of_key

TIME = pa.timestamp("us", tz="UTC")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
COLUMNS = pa.schema(
    {"customer_id": pa.int64(), "order_ts": TIME, "dollar_value": pa.float64()}
)

# Days and microseconds beside them, so that window edges, ties and same-day orders are common.
moments = st.builds(
    lambda day, tick: BEGIN + day * DAY + tick * TICK,
    st.integers(0, 240),
    st.sampled_from([0, 0, 0, 1, -1, 43_200_000_000]),
)


def orders_table(*orders: tuple[int, datetime, float]) -> ibis.Table:
    rows = pa.Table.from_pylist(
        [dict(zip(COLUMNS.names, order, strict=True)) for order in orders], COLUMNS
    )
    return ibis.memtable(rows.append_column("ingested_at", rows["order_ts"]))


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (29.9, {"total_orders_30d": 2, "total_orders_90d": 2, "total_spend_30d": 15.0}),
        (30, {"total_orders_30d": 1, "total_orders_90d": 2, "total_spend_30d": 5.0}),
        (90, {"total_orders_30d": 0, "total_orders_90d": 1, "total_spend_90d": 5.0}),
        (200, {"total_orders_90d": 0, "total_spend_90d": 0.0, "lifetime_value": 15.0}),
    ],
)
def test_windows_of_the_shipped_features_end_to_the_microsecond(day, expected):
    second_order = BEGIN + 20 * DAY
    orders = orders_table((1, BEGIN, 10.0), (1, second_order, 5.0), (2, BEGIN, 7.0))
    rows = FEATURES(orders).to_pyarrow()
    moment = BEGIN + day * DAY
    past = (pc.field("customer_id") == 1) & (pc.field("event_timestamp") <= moment)
    newest = rows.filter(past).sort_by("event_timestamp").to_pylist()[-1]
    expected |= {
        "lifetime_orders": 2,
        "avg_order_value": 7.5,
        "customer_segment": "repeat",
        "first_order_us": microseconds(BEGIN),
        "last_order_us": microseconds(second_order),
    }
    assert {name: newest[name] for name in expected} == expected


def test_of_rows_of_one_time_the_newest_is_the_one_created_last():
    rows = pa.table(
        {
            "key": ["a", "a", "a", "b"],
            "event_timestamp": [BEGIN, BEGIN + DAY, BEGIN + DAY, BEGIN],
            "created": [BEGIN + 3 * DAY, BEGIN + 2 * DAY, BEGIN + DAY, BEGIN],
            "name": ["old", "late", "tie", "alone"],
        }
    )
    assert sorted(newest_of_key(rows, ["key"])["name"].to_pylist()) == ["alone", "late"]


@pytest.mark.parametrize(
    ("orders", "labels"),
    [
        ([-D180], []),  # the window is open at its old end
        ([-D180 + TICK], [1]),
        ([timedelta(0)], [1]),  # an order at the snapshot itself belongs to the past
        ([timedelta(0), TICK], [0]),
        ([timedelta(0), D90], [0]),
        ([timedelta(0), D90 + TICK], [1]),
        ([TICK], []),  # unknown before the snapshot
    ],
)
def test_churn_is_no_order_within_the_horizon_of_those_active_before(orders, labels):
    snapshot = BEGIN + 200 * DAY
    table = orders_table(*((1, snapshot + offset, 1.0) for offset in orders))
    snapshots = ibis.memtable(pa.table({"event_timestamp": pa.array([snapshot], TIME)}))
    rows = churned_90d(table, snapshots).to_pyarrow()
    assert rows["label"].to_pylist() == labels

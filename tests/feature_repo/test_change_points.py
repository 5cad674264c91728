"""The shipped features and label of orders, at single moments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import ibis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from feature_repo.datasets.orders import D90, D180, FEATURES, churned_90d
from feature_repo.entities import newest_of_key

TIME = pa.timestamp("us", tz="UTC")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)

# Days and microseconds beside them, so that window edges, ties and same-day orders are common.
moments = st.builds(
    lambda day, tick: BEGIN + day * DAY + tick * TICK,
    st.integers(0, 240),
    st.sampled_from([0, 0, 0, 1, -1, 43_200_000_000]),
)


def orders_table(*orders: tuple[int, datetime, float]) -> ibis.Table:
    schema = {"customer_id": pa.int64(), "order_ts": TIME, "dollar_value": pa.float64()}
    rows = [dict(zip(schema, order, strict=True)) for order in orders]
    known = [row | {"ingested_at": row["order_ts"]} for row in rows]
    return ibis.memtable(pa.Table.from_pylist(known, pa.schema(schema | {"ingested_at": TIME})))


def microseconds(at: datetime) -> int:
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)) / TICK)


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
    orders = orders_table((1, BEGIN, 10.0), (1, BEGIN + 20 * DAY, 5.0), (2, BEGIN, 7.0))
    at = BEGIN + day * DAY
    rows = FEATURES(orders).to_pyarrow().to_pylist()
    past = [row for row in rows if row["customer_id"] == 1 and row["event_timestamp"] <= at]
    value = max(past, key=lambda row: row["event_timestamp"])
    expected |= {
        "lifetime_orders": 2,
        "avg_order_value": 7.5,
        "customer_segment": "repeat",
        "first_order_us": microseconds(BEGIN),
        "last_order_us": microseconds(BEGIN + 20 * DAY),
    }
    assert {name: value[name] for name in expected} == expected


def test_of_rows_of_one_time_the_newest_is_the_one_created_last():
    days = [("a", 1, 2, "old"), ("a", 3, 3, "late"), ("a", 3, 1, "tie"), ("a", 9, 9, "ahead"),
            ("b", 4, 4, "exact")]  # fmt: skip
    rows = [
        {
            "key": key,
            "event_timestamp": BEGIN + at * DAY,
            "created": BEGIN + made * DAY,
            "name": name,
        }
        for key, at, made, name in days
    ]
    table = pa.Table.from_pylist(rows)
    table = table.filter(pa.compute.field("event_timestamp") <= BEGIN + 4 * DAY)
    newest = newest_of_key(table, ["key"])
    assert {(row["key"], row["name"]) for row in newest.to_pylist()} == {
        ("a", "late"),
        ("b", "exact"),
    }


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
    snapshot = BEGIN + 200 * DAY
    table = orders_table(*((1, snapshot + offset, 1.0) for offset in orders))
    snapshots = ibis.memtable(pa.table({"event_timestamp": pa.array([snapshot], TIME)}))
    rows = churned_90d(table, snapshots).to_pyarrow().to_pylist()
    assert [row["label"] for row in rows] == ([] if label is None else [label])

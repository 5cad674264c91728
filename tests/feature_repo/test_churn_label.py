"""The label of the shipped model."""

from datetime import UTC, datetime, timedelta

import ibis
import pyarrow as pa
import pytest

from feature_repo.datasets.orders import D90, D180, churned_90d

TIME = pa.timestamp("us", tz="UTC")
SNAPSHOT = datetime(2026, 7, 20, tzinfo=UTC)
NOW = timedelta(0)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("orders", "labels"),
    [
        ([-D180], []),  # the window is open at its old end
        ([-D180 + TICK], [1]),
        ([NOW], [1]),  # an order at the snapshot itself belongs to the past
        ([NOW, TICK], [0]),
        ([NOW, D90], [0]),
        ([NOW, D90 + TICK], [1]),
        ([TICK], []),  # unknown before the snapshot
    ],
)
def test_an_active_customer_without_an_order_within_the_horizon_has_churned(
    orders, labels
):
    rows = {
        "customer_id": [1] * len(orders),
        "order_ts": pa.array([SNAPSHOT + offset for offset in orders], TIME),
        "dollar_value": [1.0] * len(orders),
    }
    snapshots = pa.table({"event_timestamp": pa.array([SNAPSHOT], TIME)})
    label_rows = churned_90d(ibis.memtable(pa.table(rows)), ibis.memtable(snapshots))
    assert label_rows.to_pyarrow()["label"].to_pylist() == labels

"""The label of the shipped model."""

from datetime import timedelta

import ibis
import pyarrow as pa

from feature_repo.datasets.orders import D90, D180, churned_90d
from tests.conftest import AS_OF
from tests.support.feature_engine.shop import order, order_table

NOW = timedelta(0)
TICK = timedelta(microseconds=1)
CUSTOMERS = [
    ([-D180], None),  # the window is open at its old end
    ([-D180 + TICK], 1),
    ([NOW], 1),  # an order at the snapshot itself belongs to the past
    ([NOW, TICK], 0),
    ([NOW, D90], 0),
    ([NOW, D90 + TICK], 1),
    ([TICK], None),  # unknown before the snapshot
]
"""When each customer orders, seen from the snapshot, and its label."""


def test_an_active_customer_without_an_order_within_the_horizon_has_churned():
    orders = [
        order(1, customer, AS_OF + offset)
        for customer, (offsets, _) in enumerate(CUSTOMERS)
        for offset in offsets
    ]
    snapshots = pa.table({"event_timestamp": [AS_OF]})
    rows = churned_90d(ibis.memtable(order_table(*orders)), ibis.memtable(snapshots))
    labels = {row["customer_id"]: row["label"] for row in rows.to_pyarrow().to_pylist()}
    assert [labels.get(number) for number in range(len(CUSTOMERS))] == [
        label for _, label in CUSTOMERS
    ]

"""A source on S3 with deliveries of orders."""

import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_engine.ingest.source import pull
from feature_repo.datasets import load_dataset
from tests.conftest import new_settings

ORDERS = load_dataset("orders")


def deliver(folder, as_of, **more):
    """Have the source hold the orders up to `as_of` of a quarter of the customers."""
    rows = pull(new_settings(folder / "none", **more), ORDERS, as_of).read_all()
    some = rows.filter(pc.equal(pc.bit_wise_and(rows["customer_id"], 3), 0))
    pq.write_table(some, source(folder))


def source(folder):
    return str(folder / "orders.parquet")

"""A source of orders that a test rewrites, and an installation that reads it."""

from contextlib import closing
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.spec import load_spec
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.offline.raw import raw_table
from feature_repo.datasets import load_dataset
from tests.support.feature_engine.installation import online_reader

SPEC = load_spec("customer_churn_model")
ORDERS = load_dataset("orders")
VIEW = "customer_features"
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def order(number, customer, at, amount=10.0, cds=1):
    return {
        "order_id": number,
        "customer_id": customer,
        "order_ts": at,
        "number_of_cds": cds,
        "dollar_value": amount,
    }


def order_table(*orders):
    return pa.Table.from_pylist([*orders], ORDERS.schema)


class Shop:
    """A source file that a test rewrites, and an installation that reads it."""

    def __init__(self, settings, file):
        self.file = file
        self.settings = settings.model_copy(update={"sources": {"orders": str(file)}})

    def has(self, *orders):
        pq.write_table(order_table(*orders), self.file)

    def ingest(self, as_of, **more):
        """Ingest at a time of the test's own, which is that of its events too."""
        return ingest(self.settings, "orders", as_of, **({"began": as_of} | more))

    def online(self, as_of, *customers):
        keys = [{"customer_id": customer} for customer in customers]
        reader = online_reader(self.settings, SPEC.feature_service, SPEC.features)
        with closing(reader):
            return reader.read(keys, as_of)

    def raw(self):
        return raw_table(self.settings, ORDERS).read().to_pylist()

    def quarantine(self):
        return quarantine_table(self.settings, ORDERS).read().to_pylist()


@pytest.fixture
def shop(applied, tmp_path):
    return Shop(applied, tmp_path / "orders.parquet")

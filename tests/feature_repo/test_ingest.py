"""Ingest end to end: a source that changes, real Delta tables, Feast and Redis."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.ingest import ingest
from feature_repo.quarantine import quarantine_table
from tests.feature_repo.conftest import online_reader

if TYPE_CHECKING:
    from pathlib import Path

    from core.settings import Settings

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


class Shop:
    """A source file that a test rewrites, and an installation that reads it."""

    def __init__(self, settings: Settings, file: Path) -> None:
        self.file = file
        self.settings = settings.model_copy(update={"sources": {"orders": str(file)}})

    def has(self, *orders):
        rows = pa.Table.from_pylist(list(orders), schema=ORDERS.schema)
        pq.write_table(rows, self.file)

    def ingest(self, as_of, *, full=False):
        return ingest(self.settings, "orders", as_of, full=full)

    def online(self, as_of, *customers):
        reader = online_reader(self.settings, SPEC.feature_service, SPEC.features)
        keys = [{"customer_id": customer} for customer in customers]
        try:
            return reader.read(keys, as_of)
        finally:
            reader.close()

    def raw(self):
        return raw_table(self.settings, ORDERS).read().to_pylist()

    def aside(self):
        return quarantine_table(self.settings, ORDERS).read().to_pylist()


@pytest.fixture
def shop(applied, tmp_path):
    return Shop(applied, tmp_path / "orders.parquet")


def test_orders_become_rows_and_online_values_and_a_second_ingest_changes_nothing(
    shop, as_of
):
    shop.has()
    with pytest.raises(DataError, match="no rows yet"):
        shop.ingest(as_of)
    shop.has(order(1, 1, as_of - 10 * DAY, 5.0), order(2, 1, as_of - 40 * DAY, 7.0))
    report = shop.ingest(as_of)
    assert (report.inserted, report.replaced, report.quarantined) == (2, 0, 0)
    assert shop.online(as_of, 1, 99) == [
        {
            "total_orders_30d": 1,
            "total_orders_90d": 2,
            "total_spend_30d": 5.0,
            "total_spend_90d": 12.0,
            "lifetime_orders": 2,
            "lifetime_value": 12.0,
            "avg_order_value": 6.0,
            "customer_segment": "repeat",
            "days_since_last_order": 10,
            "customer_tenure_days": 40,
        },
        None,
    ]
    repeated = shop.ingest(as_of)
    assert (repeated.inserted, repeated.table_version) == (0, report.table_version)


def test_an_older_as_of_never_turns_the_online_store_back(shop, as_of):
    shop.has(order(1, 1, as_of - DAY), order(2, 1, as_of))
    shop.ingest(as_of)
    shop.ingest(as_of - 5 * DAY)
    assert shop.online(as_of, 1)[0]["lifetime_orders"] == 2

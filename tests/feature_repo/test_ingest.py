"""Ingest end to end: a source that changes, real Delta tables, Feast and Redis."""

from __future__ import annotations

import json
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


def test_corrected_and_late_orders_reach_the_online_store(shop, as_of):
    orders = [
        order(1, 1, as_of - DAY, 5.0),
        order(11, 11, as_of - 40 * DAY, 5.0),
        order(12, 11, as_of - 2 * DAY, 7.0),
        order(13, 12, as_of - DAY, 1.0),
        order(21, 21, as_of - 50 * DAY, 5.0),
        order(22, 21, as_of - 2 * DAY, 7.0),
    ]
    corrections = {
        1: {"dollar_value": 50.0},
        12: {"order_ts": as_of - 35 * DAY},
        13: {"customer_id": 11},
        22: {"customer_id": 29},
    }
    shop.has(*orders)
    shop.ingest(as_of)
    corrected_orders = [row | corrections.get(row["order_id"], {}) for row in orders]
    shop.has(*corrected_orders, order(31, 31, as_of - 25 * DAY, 3.0))
    report = shop.ingest(as_of + DAY)
    assert (report.inserted, report.replaced) == (1, 4)
    arrivals = {row["order_id"]: row["ingested_at"] for row in shop.raw()}
    assert (arrivals[1], arrivals[11]) == (as_of + DAY, as_of - 40 * DAY)
    # The newest order of 11 was older, and that of 12 was 11's.
    names = ("total_orders_30d", "total_orders_90d", "lifetime_value")
    values = [
        row and tuple(row[name] for name in names)
        for row in shop.online(as_of + DAY, 1, 11, 12, 21, 29, 31)
    ]
    assert values == [
        (1, 1, 50.0),
        (1, 3, 13.0),
        None,
        (0, 1, 5.0),
        (1, 1, 7.0),
        (1, 1, 3.0),
    ]


def test_bad_rows_go_to_quarantine_once_and_are_shown_in_the_data_docs(shop, as_of):
    good_rows = [order(number, number, as_of - DAY) for number in range(1, 40)]
    shop.has(
        *good_rows,
        order(50, 50, as_of - DAY, -1.0),
        order(51, None, as_of - DAY),
        order(52, 52, as_of + DAY),
        order(53, 53, as_of - DAY, float("inf")),
    )
    report = shop.ingest(as_of)
    assert (report.inserted, report.quarantined) == (39, 4)
    page = (shop.settings.data_docs / "orders" / "index.html").read_text()
    assert "dollar_value" in page
    shop.ingest(as_of + HOUR)
    rules = {json.loads(row["row"])["order_id"]: row["rules"] for row in shop.aside()}
    assert len(shop.aside()) == 4
    assert rules.keys() == {50, 51, 52, 53}
    assert "be_between(order_ts)" in rules[52]  # dated in the future


def test_an_older_as_of_never_turns_the_online_store_back(shop, as_of):
    shop.has(order(1, 1, as_of - DAY), order(2, 1, as_of))
    shop.ingest(as_of)
    shop.ingest(as_of - 5 * DAY)
    assert shop.online(as_of, 1)[0]["lifetime_orders"] == 2


def test_an_expression_that_is_taken_back_leaves_nothing_of_it_online(
    shop, as_of, monkeypatch
):
    shop.has(order(1, 1, as_of - DAY, 5.0))
    shop.ingest(as_of)
    shipped = ORDERS.views[VIEW]
    with monkeypatch.context() as patch:
        patch.setitem(
            ORDERS.views, VIEW, lambda rows: shipped(rows).mutate(lifetime_value=9.0)
        )
        shop.ingest(as_of)
        assert shop.online(as_of, 1)[0]["lifetime_value"] == 9.0
    shop.ingest(as_of + DAY)
    assert shop.online(as_of + DAY, 1)[0]["lifetime_value"] == 5.0

"""A PostgreSQL of Debian's packages as a source."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest, raw_table
from tests.postgres import postgres_server

ORDERS = load_dataset("orders")
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """Address of an empty database."""
    with postgres_server(tmp_path_factory.mktemp("postgres") / "log") as server:
        yield server.address


@pytest.fixture
def shop(postgres):
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS orders")
        connection.execute(
            "CREATE TABLE orders (order_id bigint, customer_id integer, order_ts timestamptz,"
            " number_of_cds smallint, dollar_value numeric(10, 2))"
        )
        connection.execute("SET TIME ZONE 'Asia/Kolkata'")
        yield connection


def sell(shop, *orders):
    for number, at in orders:
        row = (number, number % 5 + 1, at)
        shop.execute("INSERT INTO orders VALUES (%s, %s, %s, 1, 9.99)", row)


def test_ingest_reads_the_newest_rows_and_all_of_them_once_a_day_or_when_asked(
    shop, postgres, applied, as_of
):
    settings = applied.model_copy(update={"sources": {"orders": f"{postgres}#orders"}})

    def changes(time, **options):
        report = ingest(settings, "orders", time, **options)
        return report.inserted, report.replaced

    sell(shop, *((number, as_of - number * DAY) for number in range(1, 40)))
    assert changes(as_of) == (39, 0)
    sell(shop, (100, as_of - 5 * DAY), (101, as_of - 20 * DAY))
    shop.execute("UPDATE orders SET dollar_value = 5 WHERE order_id IN (2, 30)")
    assert changes(as_of + HOUR) == (1, 1)  # within the look-back of seven days
    assert changes(as_of + 2 * HOUR, full=True) == (1, 1)
    sell(shop, (102, as_of - 30 * DAY))
    assert changes(as_of + 3 * HOUR) == (0, 0)
    assert changes(as_of + DAY) == (1, 0)
    amounts = raw_table(settings, ORDERS).read()["dollar_value"].to_pylist()
    assert sorted(amounts) == [5.0] * 2 + [9.99] * 40

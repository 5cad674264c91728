"""A PostgreSQL of Debian's packages as a source."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest, raw_table
from feature_repo.source import pull
from tests.conftest import AS_OF, new_settings
from tests.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ORDERS = load_dataset("orders")
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def server_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgres") / "log"


@pytest.fixture(scope="module")
def postgres(server_log: Path) -> Iterator[str]:
    """Address of an empty database."""
    with postgres_server(server_log) as server:
        yield server.address


@pytest.fixture
def shop(postgres: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS orders")
        connection.execute(
            "CREATE TABLE orders (order_id bigint, customer_id integer, order_ts timestamptz,"
            " number_of_cds smallint, dollar_value numeric(10, 2))"
        )
        connection.execute(
            "SET TIME ZONE 'Asia/Kolkata'"
        )  # the shop's own; an instant is one
        yield connection


def sell(shop, *orders):
    for number, at in orders:
        row = (number, number % 5 + 1, at)
        shop.execute("INSERT INTO orders VALUES (%s, %s, %s, 1, 9.99)", row)


def test_rows_come_in_the_dataset_s_types_and_only_the_later_ones(
    shop, postgres, server_log, tmp_path
):
    settings = new_settings(tmp_path, sources={"orders": f"{postgres}#orders"})
    sell(shop, (1, AS_OF - 30 * DAY), (2, AS_OF - 2 * DAY), (3, None))
    found = pull(settings, ORDERS, AS_OF).read_all()
    assert found.schema.remove_metadata() == ORDERS.schema
    assert found.sort_by("order_id")["order_ts"].to_pylist() == [
        AS_OF - 30 * DAY, AS_OF - 2 * DAY, None,
    ]  # fmt: skip
    assert found["dollar_value"].to_pylist() == [9.99] * 3
    later = pull(settings, ORDERS, AS_OF, since=AS_OF - 7 * DAY).read_all()
    assert later["order_id"].to_pylist() == [2]


def test_the_database_itself_leaves_out_what_is_older(
    shop, postgres, server_log, tmp_path
):
    sources = {"orders": f"{postgres}#orders"}
    settings = new_settings(tmp_path).model_copy(update={"sources": sources})
    sell(shop, *((n, AS_OF - n * DAY) for n in range(1, 100)))
    assert pull(settings, ORDERS, AS_OF, since=AS_OF - 7 * DAY).read_all().num_rows == 6
    asked = server_log.read_text().rpartition("SELECT")[2]
    assert "WHERE" in asked


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

"""A PostgreSQL of Debian's packages as a source."""

import psycopg
import pytest

from core.connectors.reading import read
from feature_engine.ingest.pipeline import ingest, raw_table
from tests.conftest import AS_OF
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS
from tests.support.stores.postgres import postgres_server

pytestmark = pytest.mark.journey


def test_ingest_reads_the_newest_rows_and_all_rows_once_a_day_or_with_full(
    applied, tmp_path
):
    with (
        postgres_server(tmp_path / "log") as server,
        psycopg.connect(server.address, autocommit=True) as shop,
    ):
        sources = {"orders": f"{server.address}#orders"}
        settings = applied.model_copy(update={"sources": sources})

        def sell(days_ago):
            for number, days in days_ago.items():
                row = (number, number % 5 + 1, AS_OF - days * DAY)
                shop.execute("INSERT INTO orders VALUES (%s, %s, %s, 1, 9.99)", row)

        def changes(time, **options):
            report = ingest(settings, "orders", time, **options)
            return report.inserted, report.replaced

        shop.execute(
            "CREATE TABLE orders (order_id bigint, customer_id integer, order_ts timestamptz,"
            " number_of_cds smallint, dollar_value numeric(10, 2))"
        )
        shop.execute("SET TIME ZONE 'Asia/Kolkata'")
        sell({number: number for number in range(1, 40)})
        assert changes(AS_OF) == (39, 0)
        sell({100: 5, 101: 20})
        shop.execute("UPDATE orders SET dollar_value = 5 WHERE order_id IN (2, 30)")
        assert changes(AS_OF + HOUR) == (1, 1)  # within the look-back of seven days
        assert changes(AS_OF + 2 * HOUR, full=True) == (1, 1)
        sell({102: 30})
        assert changes(AS_OF + 3 * HOUR) == (0, 0)
        assert changes(AS_OF + DAY) == (1, 0)
        columns = {
            field.name: str(field.type) for field in read(*sources.values()).schema
        }
        assert columns["order_ts"] == "timestamp[us, tz=UTC]"
        assert columns["number_of_cds"] == "int16"
    amounts = raw_table(settings, ORDERS).read()["dollar_value"].to_pylist()
    assert sorted(amounts) == [5.0] * 2 + [9.99] * 40

"""Of two rows of a key the later one counts, by what the source tells of their order."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.transforms import IdentityTransform

from core.connectors import delta
from core.connectors.formats import Later, are_in_order
from core.connectors.iceberg import open_iceberg
from core.errors import BatchRejectedError
from feature_engine.ingest.landing import land
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.shop import DAY, ORDERS, order, order_table

MOMENT = AS_OF - DAY


class DeltaSource:
    def __init__(self, folder, _monkeypatch):
        self.address = str(folder / "orders")

    def append(self, rows):
        write_deltalake(self.address, rows, mode="append")


class IcebergSource:
    def __init__(self, folder, monkeypatch):
        monkeypatch.setenv("PYICEBERG_CATALOG__TEAM__TYPE", "sql")
        monkeypatch.setenv("PYICEBERG_CATALOG__TEAM__URI", f"sqlite:///{folder}/c.db")
        monkeypatch.setenv("PYICEBERG_CATALOG__TEAM__WAREHOUSE", f"file://{folder}")
        self.catalog = load_catalog("team", **catalog_options(folder))
        self.catalog.create_namespace("shop")
        self.catalog.create_table("shop.orders", ORDERS.schema)
        self.address = "iceberg://team#shop.orders"

    def append(self, rows):
        self.catalog.load_table("shop.orders").append(rows)


def catalog_options(folder):
    uri = f"sqlite:///{folder}/c.db"
    return {"type": "sql", "uri": uri, "warehouse": f"file://{folder}"}


@pytest.fixture
def catalogs(monkeypatch):
    """Let pyiceberg read its variables again: it reads them when it is imported."""

    def use(folder):
        options = catalog_options(folder)
        monkeypatch.setattr(
            "pyiceberg.catalog.load_catalog", lambda name: load_catalog(name, **options)
        )

    return use


def delivered(settings, dataset=ORDERS, since=None):
    rows = pull(settings, dataset, AS_OF, since)
    return land(settings, dataset, rows, AS_OF)


def amounts(settings):
    return raw_table(settings, ORDERS).read()["dollar_value"].to_pylist()


@pytest.mark.parametrize("kind", [DeltaSource, IcebergSource])
@pytest.mark.parametrize("since", [None, AS_OF - 2 * DAY])
def test_an_appended_correction_counts_on_each_run(
    suite, tmp_path, monkeypatch, catalogs, kind, since
):
    suite()
    catalogs(tmp_path)
    source = kind(tmp_path, monkeypatch)
    settings = new_settings(tmp_path / "home", sources={"orders": source.address})
    for number in range(12):
        source.append(order_table(order(1, 1, MOMENT, float(number))))
        report = delivered(settings, since=since)
        assert (report.inserted, report.replaced) == ((1, 0) if not number else (0, 1))
        assert amounts(settings) == [number]
    for _ in range(3):
        report = delivered(settings, since=since)
        assert (report.replaced, amounts(settings)) == (0, [11.0])


def test_commits_of_a_checkpoint_are_in_order(suite, tmp_path):
    suite()
    source = DeltaSource(tmp_path, None)
    for number in range(5):
        source.append(order_table(order(1, 1, MOMENT, float(number))))
    DeltaTable(source.address).create_checkpoint()
    for file in sorted((tmp_path / "orders" / "_delta_log").glob("*[0-9].json"))[:4]:
        file.unlink()
    settings = new_settings(tmp_path / "home", sources={"orders": source.address})
    delivered(settings)
    assert amounts(settings) == [4.0]


def test_a_compaction_tells_no_order_and_is_no_reason_to_stop_without_need(
    suite, tmp_path
):
    suite()
    source = DeltaSource(tmp_path, None)
    settings = new_settings(tmp_path / "home", sources={"orders": source.address})
    for number in range(3):
        source.append(order_table(order(number, 1, MOMENT, 5.0)))
    DeltaTable(source.address).optimize.compact()
    assert not are_in_order(delta.delta_files(source.address))
    assert delivered(settings).inserted == 3
    source.append(order_table(order(1, 1, MOMENT, 6.0)))
    delivered(settings)  # a later commit than that of the compaction
    assert sorted(amounts(settings)) == [5.0, 5.0, 6.0]
    DeltaTable(source.address).optimize.compact()
    with pytest.raises(BatchRejectedError, match="nothing tells which row is the last"):
        delivered(settings)
    assert sorted(amounts(settings)) == [5.0, 5.0, 6.0]


def insert_orders(file, *contents):
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS orders (order_id INTEGER, customer_id INTEGER, "
            "order_ts TIMESTAMPTZ, number_of_cds INTEGER, dollar_value REAL)"
        )
        for count, amount in contents:
            row = order(1, 1, MOMENT, amount) | {"number_of_cds": count}
            values = [row[name] for name in ORDERS.schema.names]
            values[2] = f"{MOMENT:%Y-%m-%d %H:%M:%S}+00:00"
            database.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", values)


def settings_of(folder, file):
    return new_settings(
        folder / "home",
        sources={"orders": f"sqlite://{file}#orders"},
        time_zones={"orders": "UTC"},
    )


def test_a_database_with_two_contents_of_a_key_is_refused_without_a_version(
    suite, tmp_path
):
    suite()
    file = tmp_path / "shop.db"
    insert_orders(file, (2, 20.0), (1, 10.0))
    settings = settings_of(tmp_path, file)
    with pytest.raises(
        BatchRejectedError, match=r"keys with several contents.*version="
    ):
        delivered(settings)
    assert not raw_table(settings, ORDERS).exists
    delivered(settings, replace(ORDERS, version="number_of_cds"))
    assert amounts(settings) == [20.0]


def test_a_second_content_is_refused_also_where_the_row_read_last_is_known(
    suite, tmp_path
):
    suite()
    file = tmp_path / "shop.db"
    insert_orders(file, (1, 10.0))
    settings = settings_of(tmp_path, file)
    delivered(settings)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("DELETE FROM orders")
    insert_orders(file, (2, 20.0), (1, 10.0))
    with pytest.raises(BatchRejectedError, match="nothing tells which row is the last"):
        delivered(settings)
    assert amounts(settings) == [10.0]
    delivered(settings, replace(ORDERS, version="number_of_cds"))
    assert amounts(settings) == [20.0]


def test_a_row_without_a_time_does_not_stop_a_table_that_is_partitioned_by_time(
    tmp_path, catalogs
):
    catalogs(tmp_path)
    catalog = load_catalog("team", **catalog_options(tmp_path))
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.orders", ORDERS.schema)
    with table.update_spec() as spec:
        spec.add_field("order_ts", IdentityTransform(), "time")
    times = [MOMENT, None, MOMENT - 9 * DAY]
    rows = [order(number, 1, time) for number, time in enumerate(times)]
    table.append(order_table(*rows))
    later = Later("order_ts", MOMENT - timedelta(days=1))
    found = open_iceberg("iceberg://team#shop.orders", later).read_all()
    assert {0, 1} <= {*found["order_id"].to_pylist()}
    assert pa.types.is_timestamp(found.schema.field("order_ts").type)

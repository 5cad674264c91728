"""Rows of Delta and Iceberg: which row of a key came last, where files hold rows of many commits."""

import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.expressions import EqualTo

from core.connectors import delta
from core.connectors.formats import are_in_order
from core.connectors.reading import files_of
from core.errors import BatchRejectedError
from feature_engine.ingest.landing import land
from feature_engine.ingest.source import is_in_order, pull
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.shop import DAY, ORDERS, order, order_table
from tests.support.stores.iceberg import use_catalog

MOMENT = AS_OF - DAY
CLEANED_AT_ONCE = {"delta.logRetentionDuration": "interval 0 days"}
MERGED = "stored.order_id = new.order_id AND stored.dollar_value = 5.0"


def orders(*amounts):
    """Rows of orders, each a number and an amount."""
    return order_table(
        *(order(number, number, MOMENT, amount) for number, amount in amounts)
    )


class Source:
    """A table at an address, and what an ingest reads of it."""

    def __init__(self, folder, address):
        self.address = address
        self.settings = new_settings(folder / "home", sources={"orders": address})

    def is_in_order(self):
        return is_in_order(self.settings, ORDERS)

    def amounts(self, number=1):
        rows = pull(self.settings, ORDERS, AS_OF).read_all().to_pylist()
        return [row["dollar_value"] for row in rows if row["order_id"] == number]

    def deliver(self):
        rows = pull(self.settings, ORDERS, AS_OF)
        return land(self.settings, ORDERS, rows, AS_OF)

    def landed(self):
        rows = raw_table(self.settings, ORDERS).read().to_pylist()
        return {row["order_id"]: row["dollar_value"] for row in rows}


@pytest.fixture
def delta_source(tmp_path):
    return Source(tmp_path, str(tmp_path / "orders"))


@pytest.fixture
def iceberg_source(tmp_path, monkeypatch):
    """A table of Iceberg, and the table as pyiceberg has it."""
    catalog = use_catalog(monkeypatch, "team", tmp_path)
    table = catalog.create_table("shop.orders", ORDERS.schema)
    return Source(tmp_path, "iceberg://team#shop.orders"), table


def append(source, *amounts, **options):
    write_deltalake(source.address, orders(*amounts), mode="append", **options)


def merge(table):
    merger = table.merge(
        orders((2, 7.0)), MERGED, source_alias="new", target_alias="stored"
    )
    merger.when_matched_update_all().execute()


CHANGES = {
    "DELETE": lambda table: table.delete("order_id = 2"),
    "UPDATE": lambda table: table.update(
        updates={"dollar_value": "6.0"}, predicate="order_id = 2"
    ),
    "MERGE": merge,
    "an overwrite of a part": lambda table: write_deltalake(
        table, orders((2, 6.0)), mode="overwrite", predicate="order_id = 2"
    ),
    "OPTIMIZE": lambda table: table.optimize.compact(),
    "Z-ORDER": lambda table: table.optimize.z_order(["order_id"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_of_delta_that_is_written_again_is_not_later_than_a_correction(
    delta_source, change
):
    append(delta_source, (1, 10.0), (2, 5.0))
    append(delta_source, (1, 20.0))
    assert delta_source.is_in_order()
    change(DeltaTable(delta_source.address))
    assert not delta_source.is_in_order()
    assert not are_in_order(delta.delta_files(delta_source.address))
    append(delta_source, (1, 30.0))
    assert delta_source.is_in_order()
    assert delta_source.amounts()[-1] == 30.0


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_written_again_stops_no_table_with_one_content_of_each_key(
    delta_source, change
):
    append(delta_source, (1, 10.0), (2, 5.0))
    append(delta_source, (1, 10.0), (3, 5.0))
    change(DeltaTable(delta_source.address))
    assert delta_source.is_in_order()


def test_a_correction_stays_where_another_row_of_delta_is_changed(suite, delta_source):
    suite()
    append(delta_source, (1, 10.0), (2, 5.0))
    delta_source.deliver()
    append(delta_source, (1, 20.0))
    delta_source.deliver()
    DeltaTable(delta_source.address).update(
        updates={"dollar_value": "6.0"}, predicate="order_id = 2"
    )
    with pytest.raises(BatchRejectedError, match=r"several contents.*version="):
        delta_source.deliver()
    assert delta_source.landed() == {1: 20.0, 2: 5.0}


def test_an_overwrite_of_all_rows_is_in_order(delta_source):
    append(delta_source, (1, 10.0), (2, 5.0))
    for amount in (20.0, 30.0):
        changed = orders((1, amount - 1), (1, amount))
        write_deltalake(delta_source.address, changed, mode="overwrite")
    append(delta_source, (1, 40.0))
    assert are_in_order(delta.delta_files(delta_source.address))
    assert delta_source.amounts() == [29.0, 30.0, 40.0]


def test_a_file_that_a_restore_brings_back_is_not_later_than_the_others(delta_source):
    partition = {"partition_by": "customer_id"}
    for customer, amount in enumerate((10.0, 20.0)):
        rows = order_table(order(1, customer, MOMENT, amount))
        write_deltalake(delta_source.address, rows, mode="append", **partition)
    table = DeltaTable(delta_source.address)
    table.delete("customer_id = 0")
    table.restore(1)
    assert delta_source.amounts() == [20.0, 10.0]
    assert not delta_source.is_in_order()


@pytest.mark.parametrize("how", ["OPTIMIZE", "Z-ORDER", "UPDATE"])
def test_files_whose_commits_are_cleaned_are_not_in_order(delta_source, how):
    append(delta_source, (1, 10.0), (2, 5.0), configuration=CLEANED_AT_ONCE)
    append(delta_source, (1, 20.0))
    CHANGES[how](DeltaTable(delta_source.address))
    append(delta_source, (3, 1.0))
    table = DeltaTable(delta_source.address)
    table.create_checkpoint()
    table.cleanup_metadata()
    assert not delta_source.is_in_order()
    append(delta_source, (1, 30.0))
    assert delta_source.is_in_order()
    assert delta_source.amounts()[-1] == 30.0


def test_a_log_that_is_cleaned_stops_no_table_with_one_content_of_each_key(
    delta_source,
):
    append(delta_source, (1, 10.0), configuration=CLEANED_AT_ONCE)
    append(delta_source, (2, 20.0))
    append(delta_source, (3, 20.0))
    table = DeltaTable(delta_source.address)
    table.create_checkpoint()
    table.cleanup_metadata()
    assert delta_source.is_in_order()


def test_a_commit_before_the_newest_thousand_tells_no_order(delta_source, monkeypatch):
    monkeypatch.setattr(delta, "MOST_COMMITS", 3)
    append(delta_source, (1, 10.0), (2, 5.0))
    append(delta_source, (1, 20.0))
    CHANGES["OPTIMIZE"](DeltaTable(delta_source.address))
    for number in (3, 4, 5):
        append(delta_source, (number, 1.0))
    assert not delta_source.is_in_order()
    commits = [file.commit for file in files_of(delta_source.address)]
    assert commits == [-1, 3, 4, 5]


def test_files_of_one_commit_have_no_order_among_themselves(delta_source):
    partition = {"partition_by": "customer_id", "mode": "append"}
    rows = order_table(
        order(1, 2, MOMENT, 10.0), order(2, 1, MOMENT, 5.0), order(1, 1, MOMENT, 20.0)
    )
    write_deltalake(delta_source.address, rows.slice(0, 2), **partition)
    assert delta_source.is_in_order()  # two files, and each key in one of them
    write_deltalake(delta_source.address, rows.slice(2, 1), **partition)
    assert delta_source.is_in_order()
    assert delta_source.amounts() == [10.0, 20.0]
    write_deltalake(delta_source.address, rows, **partition)
    assert not delta_source.is_in_order()
    assert not are_in_order(delta.delta_files(delta_source.address))


ICEBERG_CHANGES = {
    "delete": lambda table: table.delete("order_id = 2"),
    "overwrite": lambda table: table.overwrite(
        orders((2, 6.0)), overwrite_filter=EqualTo("order_id", 2)
    ),
    "upsert": lambda table: table.upsert(orders((2, 6.0)), join_cols=["order_id"]),
}


@pytest.mark.parametrize("change", ICEBERG_CHANGES.values(), ids=ICEBERG_CHANGES)
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_file_of_iceberg_that_is_written_again_is_not_later_than_a_correction(
    iceberg_source, change, version
):
    source, table = iceberg_source
    if version == "1":
        table.catalog.drop_table("shop.orders")
        properties = {"format-version": "1"}
        table = table.catalog.create_table(
            "shop.orders", ORDERS.schema, properties=properties
        )
    table.append(orders((1, 10.0), (2, 5.0)))
    table.append(orders((1, 20.0)))
    assert source.is_in_order()
    change(table)
    assert not source.is_in_order()
    table.append(orders((1, 30.0)))
    assert source.is_in_order()
    assert source.amounts()[-1] == 30.0


def test_a_file_of_iceberg_that_is_written_again_stops_no_table_without_need(
    iceberg_source,
):
    source, table = iceberg_source
    table.append(orders((1, 10.0), (2, 5.0)))
    table.append(orders((1, 10.0), (3, 5.0)))
    ICEBERG_CHANGES["delete"](table)
    assert source.is_in_order()


def test_a_correction_stays_where_another_row_of_iceberg_is_changed(
    suite, iceberg_source
):
    suite()
    source, table = iceberg_source
    table.append(orders((1, 10.0), (2, 5.0)))
    source.deliver()
    table.append(orders((1, 20.0)))
    source.deliver()
    ICEBERG_CHANGES["delete"](table)
    with pytest.raises(BatchRejectedError, match=r"several contents.*version="):
        source.deliver()
    assert source.landed() == {1: 20.0, 2: 5.0}


def test_an_overwrite_of_all_rows_of_iceberg_is_in_order(iceberg_source):
    source, table = iceberg_source
    table.append(orders((1, 10.0), (2, 5.0)))
    table.overwrite(orders((1, 20.0), (1, 30.0)))
    assert source.is_in_order()
    assert source.amounts() == [20.0, 30.0]


def test_files_of_expired_snapshots_are_not_in_order(iceberg_source):
    source, table = iceberg_source
    table.append(orders((1, 10.0), (2, 5.0)))
    table.append(orders((1, 20.0)))
    ICEBERG_CHANGES["delete"](table)
    table.append(orders((3, 1.0)))
    newest = table.current_snapshot().snapshot_id
    expired = [
        snapshot.snapshot_id
        for snapshot in table.snapshots()
        if snapshot.snapshot_id != newest
    ]
    table.maintenance.expire_snapshots().by_ids(expired).commit()
    assert not source.is_in_order()
    table.append(orders((1, 30.0)))
    assert source.is_in_order()
    assert source.amounts()[-1] == 30.0


@pytest.mark.parametrize("since", [None, AS_OF - 2 * DAY])
def test_a_table_of_iceberg_without_a_snapshot_has_no_rows(iceberg_source, since):
    source, _ = iceberg_source
    assert pull(source.settings, ORDERS, AS_OF, since).read_all().num_rows == 0
    assert source.is_in_order()

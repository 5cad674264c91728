"""Where rows come from: the demo's dates, other sources, and what is said when there is none."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv

from core.errors import DataError
from feature_repo.datasets import load_dataset
from feature_repo.source import demo_shift, pull
from tests.conftest import AS_OF, new_settings

ORDERS = load_dataset("orders")
NEWEST = pc.max(pq.read_table(ORDERS.shipped)["order_ts"]).as_py()


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_at_least_120_and_less_than_127_days_lie_ahead_of_any_start(start):
    ahead = NEWEST + demo_shift(start, NEWEST) - timedelta(days=120)
    assert start <= ahead.date() < start + timedelta(days=7)


def test_the_demo_delivers_what_is_due_and_new_orders_every_day(tmp_path):
    settings = new_settings(tmp_path)
    counts = [pull(settings, ORDERS, AS_OF + timedelta(days=n)).num_rows for n in range(10)]
    assert counts[0] > 60_000
    assert all(later > earlier for earlier, later in pairwise(counts))
    assert pull(settings, ORDERS, AS_OF + timedelta(days=200)).num_rows == 69_659


def test_the_dates_are_fixed_at_the_first_start(tmp_path):
    first = pull(new_settings(tmp_path), ORDERS, AS_OF)
    later = new_settings(tmp_path).model_copy(update={"demo_start": date(2027, 5, 5)})
    assert pull(later, ORDERS, AS_OF).equals(first)


def test_an_ibis_address_with_a_table_is_a_source(tmp_path):
    with duckdb.connect(str(tmp_path / "shop.db")) as shop:
        shop.execute(f"CREATE TABLE orders AS SELECT * FROM '{ORDERS.shipped}' LIMIT 5")
    address = f"duckdb://{tmp_path}/shop.db#orders"
    settings = new_settings(tmp_path).model_copy(update={"sources": {"orders": address}})
    assert pull(settings, ORDERS, AS_OF).num_rows == 5


def rows_at(folder, **files):
    """One order per file, as many days old as given."""
    for name, days in files.items():
        row = {"order_id": days, "customer_id": 1, "order_ts": AS_OF - timedelta(days=days),
               "number_of_cds": 1, "dollar_value": 1.0}  # fmt: skip
        table = pa.Table.from_pylist([row], schema=ORDERS.schema)
        folder.mkdir(exist_ok=True)
        if name.startswith("csv"):
            csv.write_csv(table, folder / f"{name}.csv")
        else:
            pq.write_table(table, folder / f"{name}.parquet")
    return new_settings(folder / "home").model_copy(update={"sources": {"orders": str(folder)}})


@pytest.mark.parametrize("kind", ["csv", "day"])
def test_a_folder_is_a_source_and_only_its_newer_rows_are_read_when_asked(tmp_path, kind):
    settings = rows_at(tmp_path / "shop", **{f"{kind}_{n}": n for n in (1, 8, 20)})
    assert sorted(pull(settings, ORDERS, AS_OF)["order_id"].to_pylist()) == [1, 8, 20]
    week = AS_OF - timedelta(days=7)
    assert pull(settings, ORDERS, AS_OF, since=week)["order_id"].to_pylist() == [1]


def test_a_folder_without_files_is_named(tmp_path):
    (tmp_path / "shop").mkdir()
    with pytest.raises(DataError, match="shop: expected parquet files or CSV files, found none"):
        pull(rows_at(tmp_path / "shop"), ORDERS, AS_OF)


def test_a_folder_may_hold_parquet_and_csv_files(tmp_path):
    settings = rows_at(tmp_path / "shop", csv_1=1, day_1=2)
    assert sorted(pull(settings, ORDERS, AS_OF)["order_id"].to_pylist()) == [1, 2]


def test_a_source_that_is_not_there_is_named_without_its_password(tmp_path):
    address = "postgres://reader:secret@127.0.0.1:1/shop#orders"
    settings = new_settings(tmp_path).model_copy(update={"sources": {"orders": address}})
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/shop#orders") as refused:
        pull(settings, ORDERS, AS_OF)
    assert "secret" not in str(refused.value)


def test_a_dataset_without_a_source_is_told_the_line_and_the_file_to_add_it_to(tmp_path):
    settings = new_settings(tmp_path)
    returns = replace(ORDERS, name="returns", shipped=None)
    with pytest.raises(DataError) as refused:
        pull(settings, returns, AS_OF)
    assert "returns: no source; add the line GYRE_SOURCES__RETURNS=…" in str(refused.value)
    assert str(refused.value).endswith(f"to {tmp_path / 'gyre.env'}")
    shared = replace(returns, rows_of="orders")
    with pytest.raises(DataError, match="returns: no source; add the line GYRE_SOURCES__ORDERS=…"):
        pull(settings, shared, AS_OF)


def test_a_dataset_that_is_not_there_gets_the_list_of_those_there_are():
    with pytest.raises(DataError, match="has orders"):
        load_dataset("returns")

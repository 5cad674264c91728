"""Where rows come from: the demo's dates, other sources, and what is said when there is none."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.datasets import load_dataset
from feature_repo.source import DEMO, date_demo, demo_shift, pull
from stack.errors import DataError
from tests.conftest import AS_OF, new_settings

ORDERS = load_dataset("orders")
NEWEST = pc.max(pq.read_table(DEMO["orders"])["order_ts"]).as_py()


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


def test_another_day_can_be_seen_today(tmp_path):
    then, now = new_settings(tmp_path / "then"), new_settings(tmp_path / "now")
    start = AS_OF.date() + timedelta(days=3)
    date_demo(then, ORDERS, start)
    date_demo(now, ORDERS, start, seen_on=AS_OF.date())
    seen = pull(now, ORDERS, AS_OF)
    assert pull(then, ORDERS, AS_OF + timedelta(days=3)).num_rows == seen.num_rows
    assert pull(then, ORDERS, AS_OF).num_rows < seen.num_rows


def test_an_ibis_address_with_a_table_is_a_source(tmp_path):
    with duckdb.connect(str(tmp_path / "shop.db")) as shop:
        shop.execute(f"CREATE TABLE orders AS SELECT * FROM '{DEMO['orders']}' LIMIT 5")
    address = f"duckdb://{tmp_path}/shop.db#orders"
    settings = new_settings(tmp_path).model_copy(update={"sources": {"orders": address}})
    assert pull(settings, ORDERS, AS_OF).num_rows == 5


def test_a_source_that_is_not_there_is_named_without_its_password(tmp_path):
    address = "postgres://reader:secret@127.0.0.1:1/shop#orders"
    settings = new_settings(tmp_path).model_copy(update={"sources": {"orders": address}})
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/shop#orders") as refused:
        pull(settings, ORDERS, AS_OF)
    assert "secret" not in str(refused.value)


def test_a_dataset_that_is_not_there_gets_the_list_of_those_there_are():
    with pytest.raises(DataError, match="has orders"):
        load_dataset("returns")

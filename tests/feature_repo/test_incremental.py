"""Features kept up to date are those of the full computation, whatever came in which order."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import ibis
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.errors import DataError
from core.locks import one_writer
from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest, raw_table
from feature_repo.views import view_address, view_table, write_views
from tests.conftest import AS_OF, new_settings

ORDERS, SPEC = load_dataset("orders"), load_spec("customer_churn_model")
VIEW, DAY, HOUR = "customer_features", timedelta(days=1), timedelta(hours=1)

orders = st.tuples(
    st.integers(1, 12),  # few keys, so that batches correct each other
    st.integers(1, 5),
    st.sampled_from([0, 1, 27, 28, 29, 30, 60, 90, 300]),
    st.sampled_from([0.0, 0.1, 14.96]),
)
batches = st.lists(st.lists(orders, min_size=1, max_size=8), min_size=1, max_size=5)


def land(settings, batch, hour):
    """Merge rows (key, customer, days ago, amount); of one key the last stays."""
    at = AS_OF + hour * HOUR
    rows = [
        {"order_id": key, "customer_id": customer, "order_ts": AS_OF - days * DAY,
         "number_of_cds": 1, "dollar_value": amount, "ingested_at": at}
        for key, (customer, days, amount) in {key: rest for key, *rest in batch}.items()
    ]  # fmt: skip
    raw = raw_table(settings, ORDERS)
    raw.merge(
        pa.Table.from_pylist(rows, schema=raw.schema), ORDERS.key, ORDERS.schema.names
    )
    return raw


def rows_of(settings):
    """All rows of a view, its files' own types included, in one order."""
    view_rows = ibis.duckdb.connect().read_parquet(view_table(settings, VIEW).files())
    rows = view_rows.drop("period").to_pyarrow()
    return rows.sort_by(
        [("customer_id", "ascending"), ("event_timestamp", "ascending")]
    )


def rebuilt(settings, raw):
    """The view computed in full beside it, from the same table."""
    elsewhere = settings.model_copy(update={"home": settings.home / "elsewhere"})
    write_views(elsewhere, ORDERS, raw)
    return rows_of(elsewhere)


@hypothesis_settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batches, st.randoms(use_true_random=False))
def test_any_batches_leave_what_their_rows_give_at_once_in_any_order(
    tmp_path_factory, given_batches, chance
):
    settings = new_settings(tmp_path_factory.mktemp("any"))
    replayed = [*given_batches, chance.choice(given_batches)]
    for hour, batch in enumerate(replayed):
        raw = land(settings, batch, hour)
        if chance.random() < 0.7:  # or several versions at once
            write_views(settings, ORDERS, raw)
    write_views(settings, ORDERS, raw)

    at_once = new_settings(tmp_path_factory.mktemp("once"))
    rows, another = raw.read(), raw_table(at_once, ORDERS)
    shuffled = rows.take(chance.sample(range(len(rows)), len(rows)))
    another.merge(shuffled, ORDERS.key, ORDERS.schema.names)
    write_views(at_once, ORDERS, another)
    assert rows_of(settings).equals(rows_of(at_once))


def test_only_periods_from_the_earliest_change_on_are_written(tmp_path):
    settings = new_settings(tmp_path)
    write_views(settings, ORDERS, land(settings, [(1, 1, 300, 1.0), (2, 2, 1, 1.0)], 0))
    before = {*view_table(settings, VIEW).files()}
    write_views(settings, ORDERS, land(settings, [(3, 1, 0, 1.0)], 1))
    after = {*view_table(settings, VIEW).files()}
    kept = before & after
    assert 3 <= len(kept) < len(after)  # the order of 300 days ago and its expiries


def test_columns_in_another_order_are_the_same_view(tmp_path):
    settings = new_settings(tmp_path)
    write_views(settings, ORDERS, land(settings, [(1, 1, 300, 1.0), (2, 2, 1, 1.0)], 0))
    before = {*view_table(settings, VIEW).files()}

    def reversed_columns(rows):
        values = ORDERS.views[VIEW](rows)
        return values.select(reversed(values.columns))

    written_again = dataclasses.replace(ORDERS, views={VIEW: reversed_columns})
    raw = land(settings, [(3, 1, 0, 1.0)], 1)
    write_views(settings, written_again, raw)
    assert before & {*view_table(settings, VIEW).files()}
    expected = rebuilt(settings, raw)
    assert rows_of(settings).select(expected.column_names).equals(expected)


def test_files_put_together_change_nothing(tmp_path):
    settings = new_settings(tmp_path)
    for key in range(4):
        raw = land(settings, [(key, 1, key, 1.0)], 0)
        write_views(settings, ORDERS, raw)
    raw._open().optimize.compact()
    assert len(raw.files()) == 1
    write_views(settings, ORDERS, raw)
    assert rows_of(settings).equals(rebuilt(settings, raw))


def test_history_that_delta_has_dropped_and_tables_made_anew_are_computed_in_full(
    tmp_path,
):
    settings = new_settings(tmp_path)
    write_views(settings, ORDERS, land(settings, [(1, 1, 9, 1.0), (2, 2, 9, 1.0)], 0))
    raw = land(settings, [(1, 3, 5, 1.0)], 1)
    raw._open().vacuum(
        retention_hours=0, enforce_retention_duration=False, dry_run=False
    )
    write_views(settings, ORDERS, raw)
    assert rows_of(settings).equals(rebuilt(settings, raw))
    raw.path.rename(raw.path.with_name("gone"))
    for hour in range(2):
        raw = land(settings, [(7 + hour, 7, 3, 1.0)], hour)
    write_views(settings, ORDERS, raw)
    assert set(rows_of(settings)["customer_id"].to_pylist()) == {7}


def test_a_view_whose_rows_were_deleted_is_computed_again(tmp_path):
    settings = new_settings(tmp_path)
    raw = land(settings, [(1, 1, 9, 1.0)], 0)
    write_views(settings, ORDERS, raw)
    shutil.rmtree(view_address(settings, VIEW))
    write_views(settings, ORDERS, raw)
    assert rows_of(settings).num_rows == 3


def test_a_second_ingest_waits_and_says_so(tmp_path, monkeypatch):
    settings = new_settings(tmp_path)
    monkeypatch.setattr("core.locks.SECONDS", 0.2)
    with one_writer(settings, "orders"), ThreadPoolExecutor() as other:
        second = other.submit(ingest, settings, "orders", AS_OF)
        with pytest.raises(DataError, match="orders: another writer"):
            second.result()

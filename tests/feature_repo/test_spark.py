"""Spark gives what DuckDB gives: views, labels, training frames, online values. One JVM for all.

The shipped orders run always, what is made up runs nightly.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from datetime import timedelta

import ibis
import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from core.settings import PROJECT, Settings
from feature_repo.datasets import load_dataset
from feature_repo.datasets.orders import FEATURES, churned_90d
from feature_repo.engines import open_engine
from feature_repo.features import labels, open_raw
from feature_repo.ingest import ingest, raw_table
from feature_repo.parity import parity, same
from feature_repo.service import PublishedService
from feature_repo.views import view_files, write_views
from tests.conftest import AS_OF, new_settings, wait_until
from tests.feature_repo import test_windows
from tests.feature_repo.test_change_points import TIME, moments, orders_table, st
from tests.feature_repo.test_incremental import land, rebuilt, rows_of
from tests.feature_repo.test_offline_store import both_stores, entity_rows, same_frames
from tests.preloaded import commands_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("spark_ends_here"),
]
ORDERS, SERVICE, VIEW = load_dataset("orders"), "customer_churn_v1", "customer_features"
SPARK = "feature_repo.extensions.spark.SparkOfflineStore"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def on(engine: str, settings: Settings) -> Settings:
    return settings.model_copy(update={"engine": engine, "spark_master": "local[2]"})


@pytest.fixture(scope="module", autouse=True)
def spark(tmp_path_factory):
    # A JVM of minutes: what its second compiler wins, it does not live to see.
    os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
    engine = open_engine(on("spark", new_settings(tmp_path_factory.mktemp("spark"))))
    yield engine
    engine.connection.disconnect()
    gc.collect()  # here, where it is excused, not in some later test


def frame(settings, customers, at):
    rows = pa.table(
        {
            "customer_id": pa.array(customers, pa.int64()),
            "event_timestamp": pa.array([at] * len(customers), TIME),
            "as_of": [int(at.timestamp() * 1e6)] * len(customers),
        }
    )
    found = PublishedService(settings, SERVICE).historical(rows.to_pandas())
    return found.sort_by("customer_id")


def assert_same(one: pa.Table, other: pa.Table) -> None:
    """Schemas, whole numbers and strings are equal, floats within 1e-9 of each other."""
    assert one.schema.remove_metadata() == other.schema.remove_metadata()
    assert one.num_rows == other.num_rows > 0
    for name in one.column_names:
        if pa.types.is_floating(one[name].type):
            pairs = zip(one[name].to_pylist(), other[name].to_pylist(), strict=True)
            assert all(same(a, b) for a, b in pairs), name
        else:
            assert one[name].equals(other[name]), name


@pytest.mark.parametrize("customers", [1_000, pytest.param(24_000, marks=pytest.mark.nightly)])
def test_the_shipped_orders_ingested_with_spark_are_what_duckdb_makes_of_them(
    applied, some_orders, customers
):
    sources = {"orders": f"{some_orders}"} if customers == 1_000 else {}  # or all that is shipped
    applied = applied.model_copy(update={"sources": sources})
    settings, as_of = on("spark", applied), AS_OF + HOUR
    ingest(settings, "orders", as_of)
    raw = raw_table(settings, ORDERS)
    assert_same(rows_of(settings), rebuilt(on("duckdb", applied), raw))

    snapshots = [AS_OF - days * DAY for days in (0, 28, 200)]
    found = [
        labels(open_raw(raw, connection=open_engine(each).connection), label, snapshots)
        for label in ORDERS.labels.values()
        for each in (settings, on("duckdb", applied))
    ]
    assert_same(*found)

    asked = [*range(customers + 400)]  # some of whom never ordered
    at = AS_OF - 200 * DAY - timedelta(microseconds=1)
    assert_same(*(frame(on(e, applied), asked, at) for e in ("spark", "duckdb")))

    report = parity(settings, SERVICE, [as_of])
    assert (report.entities, report.differences) == (min(customers, 23_570), ())


orders = st.lists(
    st.tuples(st.integers(1, 40), moments, st.sampled_from([0.0, 0.01, 14.96, 1286.01])),
    min_size=1,
    max_size=200,
)


@pytest.mark.nightly
@hypothesis_settings(max_examples=4, deadline=None)
@given(orders, st.lists(moments, min_size=1, max_size=5, unique=True))
def test_rows_and_labels_of_any_orders_are_those_of_duckdb(spark, orders, times):
    table = orders_table(*orders)
    snapshots = ibis.memtable(pa.table({"event_timestamp": pa.array(times, TIME)}))
    for rows in (FEATURES(table), churned_90d(table, snapshots)):
        order = [(name, "ascending") for name in ("customer_id", "event_timestamp")]
        ours, theirs = spark.connection.to_pyarrow(rows), rows.to_pyarrow()
        assert ours.sort_by(order).equals(theirs.cast(ours.schema).sort_by(order))


@pytest.mark.nightly
@hypothesis_settings(max_examples=4, deadline=None)
@given(test_windows.rows, st.lists(moments, min_size=1, max_size=4))
def test_declared_windows_are_what_their_rows_say(spark, given_rows, asked):
    rows = test_windows.FEATURES(test_windows.as_table(given_rows))
    found = spark.connection.to_pyarrow(rows).to_pylist()
    test_windows.assert_brute_force(found, given_rows, asked)


@pytest.mark.nightly
def test_an_engine_goes_on_where_the_other_left(tmp_path):
    settings = new_settings(tmp_path)
    batches = [
        [(1, 1, 300, 1.0), (2, 2, 1, 1.0), (3, 3, 60, 0.1), (7, 3, 300, 0.1)],
        [(4, 1, 0, 14.96), (5, 4, 29, 0.1)],
        [(2, 3, 90, 2.0), (6, 2, 27, 0.0)],  # moves an order to another customer and back in time
    ]
    for hour, batch in enumerate(batches):
        raw = land(settings, batch, hour)
        before = {*view_files(settings, VIEW)}
        write_views(on("duckdb" if hour == 1 else "spark", settings), ORDERS, raw)
        after = view_files(settings, VIEW)
        assert before.isdisjoint(after) is (hour == 0)  # what lies before the change is kept
        assert rows_of(settings).equals(rebuilt(settings, raw))


@pytest.mark.nightly
@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(days=3)])
def test_random_frames_are_the_stock_stores(tmp_path, created, ttl):
    rng = np.random.default_rng([11, created])
    stores = both_stores(tmp_path, rng, ttl, created=created, kind=SPARK)
    rows = same_frames(stores, entity_rows(rng, 400), full_feature_names=True)
    assert 0.1 < np.mean([row["of_customer__count"] is not None for row in rows]) < 0.95


@pytest.mark.nightly
def test_on_demand_views_aliases_and_cuts_by_created_time_are_the_stock_stores(tmp_path):
    rng = np.random.default_rng(8)
    stores = both_stores(tmp_path, rng, timedelta(days=5), kind=SPARK)
    entities = entity_rows(rng, 300)
    rows = same_frames(stores, entities, "plain")
    assert any(row["sum"] is not None for row in rows)
    same_frames(stores, entities, "aliased", full_feature_names=True)
    same_frames(stores, entities, full_feature_names=True, filter_by_created_timestamp=True)


@pytest.mark.nightly
def test_whole_numbers_beside_nulls_stay_whole(spark):
    rows = pa.table({"n": pa.array([2**53 + 1, None], pa.int64()), "at": pa.array([0, 1], TIME)})
    assert spark.connection.to_pyarrow(ibis.memtable(rows)).sort_by("at").equals(rows)


START = """
import sys
from feature_repo.engines import open_engine
from core.errors import DataError
from core.settings import Settings
sys.modules |= dict.fromkeys(sys.argv[1:])
try:
    open_engine(Settings(engine="spark", spark_master="local[1]"))
    print("started", flush=True)
    sys.stdin.read()
except DataError as exc:
    print(exc)
"""


def started() -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", START]
    here = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=PROJECT, env=here, text=True, **pipes)


def test_a_missing_program_is_one_line_with_the_remedy(tmp_path):
    command = [commands_folder() / "python", "-c", START, "pyspark"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "GYRE_ENGINE=spark, but there is no pyspark: make spark\n"
    here = {"PATH": "/nonexistent", "GYRE_HOME": str(tmp_path)}
    done = subprocess.run(
        command[:-1], cwd=PROJECT, env=here, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Spark did not start at local[1]; it needs Java 17 or 21, which")
    assert done.stdout.count("\n") == 1


@pytest.mark.nightly
def test_the_jvm_ends_with_its_process_even_a_killed_one():
    with started() as process:
        assert process.stdout.readline() == "started\n"
        below = psutil.Process(process.pid).children(recursive=True)
        (java,) = [child for child in below if child.name() == "java"]
        process.kill()
    wait_until("end of the JVM", lambda: not java.is_running())

"""Spark writes the view rows that DuckDB writes. One JVM for all.

The shipped orders run always, what is made up runs nightly.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from datetime import timedelta

import ibis
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from redis import Redis

from core.settings import PROJECT, Settings
from core.storage import Table
from feature_repo.datasets import load_dataset
from feature_repo.engines import open_engine
from feature_repo.ingest import ingest, raw_table
from feature_repo.parity import parity, same
from feature_repo.refresh import refresh_online
from feature_repo.views import view_table, write_views
from tests.conftest import AS_OF, new_settings, wait_until
from tests.feature_repo import test_windows
from tests.feature_repo.test_change_points import moments, st
from tests.feature_repo.test_events import ingested, shop  # noqa: F401  (fixtures)
from tests.feature_repo.test_incremental import land, rebuilt, rows_of
from tests.feature_repo.test_refresh import STATE, assert_consumer_values_stay, hashes
from tests.preloaded import commands_folder
from tests.training.conftest import SHIPPED
from training.frame import build_frame, population
from training.validate import plan_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings(
        "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.usefixtures("spark_ends_here"),
]
ORDERS = load_dataset("orders")
VIEW = "customer_features"


def with_engine(engine: str, settings: Settings) -> Settings:
    return settings.model_copy(update={"engine": engine, "spark_master": "local[2]"})


@pytest.fixture(scope="module", autouse=True)
def spark(tmp_path_factory):
    # A JVM of minutes: what its second compiler wins, it does not live to see.
    os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
    folder = tmp_path_factory.mktemp("spark")
    engine = open_engine(with_engine("spark", new_settings(folder)), folder)
    yield engine
    engine.connection.disconnect()
    gc.collect()  # here, where it is excused, not in some later test


def written(engine, rows, folder):
    """Return rows as an engine writes them."""
    table = Table(new_settings(folder), ibis.util.gen_name("rows"), pa.schema([]))
    files = engine.write(rows, table, None)
    return pa.concat_tables(pq.read_table(table.path / file.path) for file in files)


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


@pytest.mark.parametrize(
    "customers", [1_000, pytest.param(23_570, marks=pytest.mark.nightly)]
)
def test_the_shipped_orders_ingested_with_spark_are_what_duckdb_makes_of_them(
    applied, some_orders, customers
):
    sources = (
        {"orders": f"{some_orders}"} if customers == 1_000 else {}
    )  # or all that is shipped
    duckdb_settings = applied.model_copy(update={"sources": sources})
    settings = with_engine("spark", duckdb_settings)
    ingest(settings, "orders", AS_OF)
    assert_same(
        rows_of(settings), rebuilt(duckdb_settings, raw_table(settings, ORDERS))
    )
    report = parity(settings, "customer_churn_v1", [AS_OF])
    assert (report.entities, report.differences) == (customers, ())


def refreshed(settings, batch, hour):
    """Land rows; return all hashes with online values once they are brought online."""
    raw = land(settings, batch, hour)
    write_views(with_engine("duckdb", settings), ORDERS, raw)
    refresh_online(settings, ORDERS, raw, lambda: AS_OF + timedelta(hours=hour))
    with Redis.from_url(settings.redis_address) as redis:
        return {name: redis.hgetall(name) for name in hashes(redis)}


def test_executors_write_online_what_duckdb_writes_to_the_byte(template):
    first_batch = [(key, key, key % 90, key / 4) for key in range(1, 40)]
    later_batch = [(1, 2, 3, 14.96), (50, 50, 27, 0.1)]  # customer 1 has no order left
    all_hashes = {}
    for engine in ("duckdb", "spark"):
        settings = with_engine(engine, template.restore())
        first_hashes = refreshed(settings, first_batch, 0)
        later_hashes = refreshed(settings, later_batch, 1)
        assert len(first_hashes) == len(later_hashes) == 39
        (vanished,) = first_hashes.keys() - later_hashes.keys()
        with Redis.from_url(settings.redis_address) as redis:
            redis.delete(STATE)
            redis.hset(vanished, mapping=first_hashes[vanished])
            redis.hset(next(iter(later_hashes)), mapping=first_hashes[vanished])
        anew_hashes = refreshed(settings, later_batch, 2)
        assert anew_hashes == later_hashes
        all_hashes[engine] = [first_hashes, later_hashes, anew_hashes]
        assert not [*settings.scratch.glob("**/*.parquet")]
    assert all_hashes["spark"] == all_hashes["duckdb"]


def test_executors_leave_alone_what_the_consumer_writes_meanwhile(shop):
    shop.settings = with_engine("spark", shop.settings)
    assert_consumer_values_stay(shop)


def test_a_training_frame_and_the_population_made_with_spark_are_those_of_duckdb(small):
    ingest(small, "orders", AS_OF)
    settings = with_engine("spark", small)
    version = raw_table(small, ORDERS).version
    plan = plan_run(small, SHIPPED, ORDERS, AS_OF, version)
    snapshots = SHIPPED.snapshots.model_copy(update={"sample": 0.75})
    spec = SHIPPED.model_copy(update={"snapshots": snapshots})
    frame, spark_frame = [
        build_frame(each, spec, ORDERS, plan.snapshots, AS_OF, version)
        for each in (small, settings)
    ]
    assert frame.num_rows > 500
    assert_same(spark_frame, frame)
    moment = plan.test[-1].start
    assert_same(
        population(settings, SHIPPED, moment), population(small, SHIPPED, moment)
    )
    assert [*settings.scratch.glob("*")] == []


@pytest.mark.nightly
@hypothesis_settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(test_windows.rows, st.lists(moments, min_size=1, max_size=4))
def test_declared_windows_are_what_their_rows_say(spark, tmp_path, raw_rows, times):
    view = test_windows.FEATURES(
        ibis.memtable(test_windows.as_table(raw_rows).to_pyarrow())
    )
    view_rows = written(spark, view, tmp_path).to_pylist()
    test_windows.assert_brute_force(view_rows, raw_rows, times)


@pytest.mark.nightly
def test_whole_numbers_beside_nulls_stay_whole(spark, tmp_path):
    columns = {
        "n": pa.array([2**53 + 1, None], pa.int64()),
        "event_timestamp": [AS_OF] * 2,
    }
    rows = written(spark, ibis.memtable(pa.table(columns)), tmp_path)
    assert sorted(rows["n"].to_pylist(), key=str) == [2**53 + 1, None]


@pytest.mark.nightly
def test_an_engine_goes_on_where_the_other_left(tmp_path):
    settings = new_settings(tmp_path)
    batches = [
        [(1, 1, 300, 1.0), (2, 2, 1, 1.0), (3, 3, 60, 0.1), (7, 3, 300, 0.1)],
        [(4, 1, 0, 14.96), (5, 4, 29, 0.1)],
        [
            (2, 3, 90, 2.0),
            (6, 2, 27, 0.0),
        ],  # moves an order to another customer and back in time
    ]
    for hour, batch in enumerate(batches):
        raw = land(settings, batch, hour)
        files_before = {*view_table(settings, VIEW).files()}
        engine = "duckdb" if hour == 1 else "spark"
        write_views(with_engine(engine, settings), ORDERS, raw)
        files_after = view_table(settings, VIEW).files()
        # What lies before the change is kept.
        assert files_before.isdisjoint(files_after) is (hour == 0)
        assert rows_of(settings).equals(rebuilt(settings, raw))


START = """
import sys
from pathlib import Path
from feature_repo.engines import open_engine
from core.errors import DataError
from core.settings import Settings
sys.modules |= dict.fromkeys(sys.argv[1:])
try:
    open_engine(Settings(engine="spark", spark_master="local[1]"), Path("spill"))
    print("started", flush=True)
    sys.stdin.read()
except DataError as exc:
    print(exc)
"""


def test_a_missing_program_is_one_line_with_the_remedy(tmp_path):
    command = [commands_folder() / "python", "-c", START, "pyspark"]
    process = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert process.stdout == "GYRE_ENGINE=spark, but there is no pyspark: make spark\n"
    environment = {"PATH": "/nonexistent", "GYRE_HOME": str(tmp_path)}
    process = subprocess.run(
        command[:-1],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    problem = "Spark did not start at local[1]; it needs Java 17 or 21 (make spark)"
    assert process.stdout.startswith(problem)
    assert process.stdout.count("\n") == 1


@pytest.mark.nightly
def test_the_jvm_ends_with_its_process_even_a_killed_one():
    command = [sys.executable, "-W", "ignore", "-c", START]
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")
    }
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, text=True, **pipes
    ) as process:
        assert process.stdout.readline() == "started\n"
        children = psutil.Process(process.pid).children(recursive=True)
        (java,) = [child for child in children if child.name() == "java"]
        process.kill()
    wait_until("end of the JVM", lambda: not java.is_running())


ENDED = """
import sys
from pathlib import Path
import ibis
import psutil
from core.errors import DataError
from core.settings import Settings
from feature_repo.engines import open_engine
engine = open_engine(Settings(engine="spark", spark_master="local[1]"), Path("spill"))
java = [child for child in psutil.Process().children(True) if child.name() == "java"]
java[0].kill()
java[0].wait()
try:
    engine.connection.to_pyarrow(ibis.range(3).unnest().as_table())
except DataError as exc:
    print(exc)
"""


@pytest.mark.nightly
def test_a_jvm_that_ended_is_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENDED],
        cwd=PROJECT,
        env=os.environ | {"GYRE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.startswith("the Java process of Spark's driver ended; ")
    assert process.stdout.count("\n") == 1

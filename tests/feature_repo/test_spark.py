"""Spark writes the view rows and online values that DuckDB writes. One JVM for all."""

import gc
import os
import subprocess

import pyarrow as pa
import pytest
from redis import Redis

from core.settings import PROJECT
from feature_repo.engines import open_engine
from feature_repo.ingest import ingest, raw_table
from feature_repo.parity import parity, same
from feature_repo.refresh import refresh_online
from feature_repo.views import write_views
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_events import ingested, shop  # noqa: F401  (fixtures)
from tests.feature_repo.test_incremental import land, rebuilt, rows_of
from tests.feature_repo.test_ingest import HOUR, ORDERS
from tests.feature_repo.test_refresh import assert_consumer_values_stay, hashes
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


def with_engine(engine, settings):
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


def assert_same(one, other):
    """Schemas, whole numbers and strings are equal, floats within 1e-9 of each other."""
    assert one.schema.remove_metadata() == other.schema.remove_metadata()
    assert one.num_rows == other.num_rows > 0
    for name in one.column_names:
        if pa.types.is_floating(one[name].type):
            pairs = zip(one[name].to_pylist(), other[name].to_pylist(), strict=True)
            assert all(same(a, b) for a, b in pairs), name
        else:
            assert one[name].equals(other[name]), name


@pytest.mark.nightly
def test_spark_gives_the_rows_values_frame_and_population_of_duckdb_for_all_orders(
    applied,
):
    settings = with_engine("spark", applied)
    ingest(settings, "orders", AS_OF)
    raw = raw_table(applied, ORDERS)
    assert_same(rows_of(applied), rebuilt(applied, raw))
    report = parity(settings, "customer_churn_v1", [AS_OF])
    assert (report.entities, report.differences) == (23_570, ())
    plan = plan_run(applied, SHIPPED, ORDERS, AS_OF, raw.version)
    snapshots = SHIPPED.snapshots.model_copy(update={"sample": 0.75})
    spec = SHIPPED.model_copy(update={"snapshots": snapshots})
    frame, spark_frame = [
        build_frame(installation, spec, ORDERS, plan.snapshots, AS_OF, raw.version)
        for installation in (applied, settings)
    ]
    assert frame.num_rows > 100
    assert_same(spark_frame, frame)
    moment = plan.test[-1].start
    assert_same(
        population(settings, SHIPPED, moment), population(applied, SHIPPED, moment)
    )
    assert [*settings.scratch.glob("*")] == []


def refreshed(settings, batch, hour):
    """Land rows; return all hashes with online values once they are brought online."""
    raw = land(settings, batch, hour)
    write_views(with_engine("duckdb", settings), ORDERS, raw)
    refresh_online(settings, ORDERS, raw, lambda: AS_OF + hour * HOUR)
    with Redis.from_url(settings.redis_address) as redis:
        return {name: redis.hgetall(name) for name in hashes(redis)}


FIRST_BATCH = [(key, key, key % 9, key / 4) for key in range(1, 40)]
LATER_BATCH = [(1, 2, 3, 14.96), (50, 50, 7, 0.1)]  # customer 1 has no order left


@pytest.mark.parametrize(
    "batches",
    [
        [FIRST_BATCH],
        pytest.param([FIRST_BATCH, LATER_BATCH], marks=pytest.mark.nightly),
    ],
)
def test_executors_write_the_online_values_of_duckdb_to_the_byte(template, batches):
    hashes_of_engines = []
    for engine in ("duckdb", "spark"):
        settings = with_engine(engine, template.restore())
        for hour, batch in enumerate(batches):
            online_hashes = refreshed(settings, batch, hour)
            assert len(online_hashes) == 39
        hashes_of_engines.append(online_hashes)
        assert not [*settings.scratch.glob("**/*.parquet")]
    duckdb_hashes, spark_hashes = hashes_of_engines
    assert spark_hashes == duckdb_hashes


@pytest.mark.nightly
def test_executors_keep_values_that_the_consumer_writes_meanwhile(shop):
    shop.settings = with_engine("spark", shop.settings)
    assert_consumer_values_stay(shop)


PATH = os.environ["PATH"]
START = """
import sys
from pathlib import Path
import ibis
import psutil
from core.errors import DataError
from core.settings import Settings
from feature_repo.engines import open_engine
sys.modules |= dict.fromkeys(sys.argv[1:])
try:
    engine = open_engine(Settings(engine="spark", spark_master="local[1]"), Path("spill"))
    children = psutil.Process().children(True)
    (java,) = [child for child in children if child.name() == "java"]
    java.kill()
    java.wait()
    engine.connection.to_pyarrow(ibis.range(3).unnest().as_table())
except DataError as exc:
    print(exc)
"""


@pytest.mark.parametrize(
    ("missing", "path", "line"),
    [
        (["pyspark"], PATH, "GYRE_ENGINE=spark, but there is no pyspark: make spark"),
        (
            [],
            "/nonexistent",
            "Spark did not start at local[1]; it needs Java 17 or 21 (make spark)",
        ),
        pytest.param(
            [],
            PATH,
            "the Java process of Spark's driver ended; ",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_missing_part_of_spark_is_reported_in_one_line_with_the_remedy(
    tmp_path, missing, path, line
):
    output = subprocess.check_output(
        [commands_folder() / "python", "-c", START, *missing],
        cwd=PROJECT,
        env={"PATH": path, "GYRE_HOME": str(tmp_path)},
        text=True,
    )
    assert output.startswith(line)
    assert output.count("\n") == 1

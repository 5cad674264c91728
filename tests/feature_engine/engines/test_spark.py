"""Spark writes the view rows and online values that DuckDB writes. One JVM for all."""

import gc
import os
import subprocess
from contextlib import closing
from datetime import timedelta
from random import Random

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal
from redis import Redis
from upath import UPath

from core.errors import UncomputableError
from core.project import PROJECT
from feature_engine.engines.engine import spark_connection
from feature_engine.ingest.pipeline import ingest, raw_table
from feature_engine.offline.labels import dataset_labels
from feature_engine.offline.views import write_views
from feature_engine.online.refresh import refresh_online
from feature_engine.online.values import OnlineValues
from tests.conftest import AS_OF
from tests.support.feature_engine.big_shop import hashes
from tests.support.feature_engine.both_stores import (
    FOREVER,
    OURS,
    REFS,
    both_stores,
    definitions,
    odd_entity_rows,
    open_store,
    same_frames,
)
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.rebuilt_views import land
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, order, order_table
from tests.support.feature_engine.window_features import BEGIN, FEATURES, as_table
from tests.support.tools.preloaded import commands_folder
from tests.training.conftest import SHIPPED
from training.data.frame import build_frame, population
from training.data.snapshots import plan_snapshots
from training.planning import first_known_event

pytestmark = [
    pytest.mark.journey,
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings(
        "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.usefixtures("spark_ends_here"),
]
ORDER = [("id", "ascending"), ("event_timestamp", "ascending")]


def with_engine(engine, settings):
    return settings.model_copy(update={"engine": engine, "spark_master": "local[2]"})


@pytest.fixture(scope="module", autouse=True)
def spark(tmp_path_factory):
    # A JVM of minutes: what its second compiler wins, it does not live to see.
    os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
    folder = tmp_path_factory.mktemp("spark")
    connection = spark_connection("local[2]", UPath(folder / "scratch"))
    yield connection
    connection.disconnect()
    gc.collect()  # here, where it is excused, not in some later test


def assert_same(*tables):
    """Types, whole numbers and strings are equal, floats within 1e-9 of each other."""
    frames = [table.to_pandas(types_mapper=pd.ArrowDtype) for table in tables]
    assert len(frames[0]) > 100
    assert_frame_equal(*frames, rtol=1e-9, atol=0)


def labels_of(settings):
    return dataset_labels(settings, ORDERS, SHIPPED.label)


@pytest.mark.nightly
def test_spark_gives_the_frame_and_population_of_duckdb_for_all_orders(applied):
    settings = with_engine("spark", applied)
    ingest(settings, "orders", AS_OF)
    version = raw_table(applied, ORDERS).version
    first_event = first_known_event(labels_of(applied), AS_OF, version)
    label = ORDERS.labels[SHIPPED.label]
    plan = plan_snapshots(first_event, AS_OF, label, SHIPPED.snapshots)
    snapshots = SHIPPED.snapshots.model_copy(update={"sample": 0.75})
    spec = SHIPPED.model_copy(update={"snapshots": snapshots})
    frames = [
        build_frame(
            installation,
            spec,
            labels_of(installation),
            plan.snapshots,
            AS_OF,
            version,
        )
        for installation in (applied, settings)
    ]
    assert_same(*frames)
    moment = plan.test[-1].start
    assert_same(
        population(settings, SHIPPED, moment), population(applied, SHIPPED, moment)
    )
    assert [*settings.scratch.glob("*")] == []


def test_executors_write_the_online_values_of_duckdb_to_the_byte(applied):
    raw = land(applied, [(key, key, key % 9, key / 4) for key in range(1, 40)], 0)
    write_views(applied, ORDERS, raw)
    hashes_of_engines = []
    with Redis.from_url(applied.redis_address) as redis:
        for engine in ("duckdb", "spark"):
            redis.flushall()
            settings = with_engine(engine, applied)
            with closing(OnlineValues(settings, ORDERS, raw)) as online:
                refresh_online(online, lambda: AS_OF)
            hashes_of_engines.append(
                {name: redis.hgetall(name) for name in hashes(redis)}
            )
    duckdb_hashes, spark_hashes = hashes_of_engines
    assert len(duckdb_hashes) == 39
    assert spark_hashes == duckdb_hashes
    assert not [*applied.scratch.glob("**/*.parquet")]


def test_executors_compute_every_function_of_windows_as_duckdb_does(spark):
    chance = Random(5)
    raw_rows = [
        {
            "id": chance.randint(1, 5),
            "at": BEGIN + chance.randint(0, 60) * DAY,  # with ties
            "paid": chance.choice([None, 0.01, 14.96, -3.0]),
            "pieces": chance.choice([None, 1, 7]),
            "kind": chance.choice([None, "a", "b", "é", "数"]),
            "late": chance.choice([None, True, False]),
        }
        for _ in range(150)
    ]
    rows = as_table(raw_rows)
    with spark.opened(rows.to_pyarrow()) as opened_rows:
        view_rows = spark.to_pyarrow(FEATURES(opened_rows))
    assert_same(view_rows.sort_by(ORDER), FEATURES(rows).to_pyarrow().sort_by(ORDER))


def test_a_row_that_spark_cannot_compute_from_is_moved_to_quarantine(applied, tmp_path):
    sources = {"orders": str(tmp_path / "*.parquet")}
    settings = with_engine("spark", applied).model_copy(update={"sources": sources})
    good = [order(number, number, AS_OF - HOUR) for number in range(2, 9)]
    pq.write_table(order_table(*good), tmp_path / "orders.parquet")
    land_orders(applied, ORDERS, [order(1, 1, AS_OF - DAY, 1e13)], AS_OF - DAY)
    remedy = "Spark.*10000000000000.*gyre ingest orders --full"
    with pytest.raises(UncomputableError, match=remedy):
        ingest(settings, "orders", AS_OF)
    assert ingest(settings, "orders", AS_OF + HOUR, full=True).quarantined == 1
    rows = raw_table(applied, ORDERS).read().to_pylist()
    assert sorted(row["order_id"] for row in rows) == [*range(2, 9)]


@pytest.mark.parametrize(
    ("ttl", "odd"), [(FOREVER, "time"), (timedelta(days=3), "")], ids=["ever", "3 days"]
)
def test_executors_join_odd_frames_as_feasts_own_store_does(tmp_path, ttl, odd):
    """Without a time to live, those with odd times alone: all else is the same."""
    rng = np.random.default_rng(4)
    stock_store, _ = both_stores(tmp_path, rng, ttl)
    on_spark = {"spark_master": "local[2]", "scratch": f"{tmp_path}/scratch"}
    objects = definitions(tmp_path, "delta", ttl, "created", None)
    store = open_store(tmp_path, objects, type=OURS, **on_spark)
    for name, entities in odd_entity_rows(rng, 100).items():
        if odd in name:
            same_frames((stock_store, store), entities, REFS, asof=None)


PATH = os.environ["PATH"]
START = """
import sys
import ibis
import psutil
from upath import UPath
from core.errors import DataError
from feature_engine.engines.engine import spark_connection
sys.modules |= dict.fromkeys(sys.argv[1:])
try:
    connection = spark_connection("local[1]", UPath("scratch"))
    children = psutil.Process().children(True)
    (java,) = [child for child in children if child.name() == "java"]
    java.kill()
    java.wait()
    connection.to_pyarrow(ibis.range(3).unnest().as_table())
except DataError as exc:
    print(exc)
"""


@pytest.mark.parametrize(
    ("missing", "path", "line"),
    [
        (
            ["pyspark"],
            PATH,
            "GYRE_ENGINE=spark, but there is no pyspark: install gyre-loop[spark]; ",
        ),
        (
            [],
            "/nonexistent",
            "Spark did not start at local[1]; it needs Java 17 or 21",
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

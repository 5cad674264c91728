"""Views are computed on the executors of a cluster, with all tables on S3, as DuckDB does."""

import os
import subprocess
import sys
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from core.settings import PROJECT
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.views import view_table, write_views
from tests.cluster.conftest import MARKS, Cluster, spark_defaults
from tests.conftest import AS_OF, new_settings

pytestmark = MARKS
DATASET = load_dataset("orders")
VIEW = "customer_features"
DAY = timedelta(days=1)


def land(raw, first, count, newest):
    """Land made-up orders of 300 customers over two years."""
    rows = [
        {
            "order_id": number,
            "customer_id": number * 31 % 300,
            "order_ts": newest - number * 7919 % 730 * DAY,
            "number_of_cds": number % 5,
            "dollar_value": number * 17 % 10_000 / 100,
            "ingested_at": newest,
        }
        for number in range(first, first + count)
    ]
    table = pa.Table.from_pylist(rows, raw.schema)
    raw.merge(table, DATASET.key, DATASET.schema.names)


def view_rows(settings):
    """Return the rows of the view in one order."""
    files = view_table(settings, VIEW).files()
    rows = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
    order = [("customer_id", "ascending"), ("event_timestamp", "ascending")]
    return rows.sort_by(order)


def test_views_on_s3_computed_by_workers_equal_those_of_duckdb(
    cluster: Cluster, spark, tmp_path
):
    settings = new_settings(
        tmp_path / "home",
        data_url="s3://gyre/views",
        engine="spark",
        spark_master=cluster.address,
    )
    plain_settings = new_settings(tmp_path / "plain")
    raw = raw_table(settings, DATASET)
    land(raw, 1, 3_000, AS_OF)
    write_views(settings, DATASET, raw)
    first_files = {*view_table(settings, VIEW).names()}
    land(raw, 2_990, 20, AS_OF + DAY)  # ten corrections, ten new orders
    write_views(settings, DATASET, raw)
    write_views(plain_settings, DATASET, raw)
    assert view_table(settings, VIEW).version == 2
    assert view_rows(settings).equals(view_rows(plain_settings))
    assert first_files - {*view_table(settings, VIEW).names()}


START = """
import sys
from upath import UPath
from core.errors import DataError
from feature_repo.engines import spark
spark.WORKER_SECONDS = 5
try:
    spark.SparkEngine(sys.argv[1], UPath("scratch"))
except DataError as exc:
    print(exc)
"""


def test_a_cluster_without_a_free_worker_is_reported_in_one_line(
    cluster: Cluster, tmp_path
):
    cluster.kill_workers()
    output = subprocess.check_output(
        [sys.executable, "-W", "ignore", "-c", START, cluster.address], cwd=PROJECT,
        env=os.environ | {"SPARK_CONF_DIR": str(spark_defaults(tmp_path))}, text=True,
    )  # fmt: skip
    (line,) = output.splitlines()
    assert line.startswith(f"no worker of {cluster.address} was free for 5 s: ")

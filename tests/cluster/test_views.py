"""Views are computed on the executors of a cluster, with all tables on S3, as DuckDB does."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from core.project import PROJECT
from feature_engine.offline.views import view_table, write_views
from tests.cluster.conftest import MARKS, spark_defaults
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import DAY, ORDERS, VIEW, order

pytestmark = MARKS


def land(settings, first, count, newest):
    """Land made-up orders of 300 customers over two years."""
    orders = []
    for n in range(first, first + count):
        time = newest - n * 7919 % 730 * DAY
        orders.append(order(n, n * 31 % 300, time, n * 17 % 10_000 / 100, n % 5))
    return land_orders(settings, ORDERS, orders, newest)


def view_rows(settings):
    """Return the rows of the view in one order."""
    files = view_table(settings, VIEW).files()
    rows = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
    order = [("customer_id", "ascending"), ("event_timestamp", "ascending")]
    return rows.sort_by(order)


def test_views_on_s3_computed_by_workers_equal_those_of_duckdb(
    cluster, spark, tmp_path
):
    settings = new_settings(
        tmp_path / "home",
        data_url="s3://gyre/views",
        engine="spark",
        spark_master=cluster.address,
    )
    plain_settings = new_settings(tmp_path / "plain")
    write_views(settings, ORDERS, land(settings, 1, 3_000, AS_OF))
    first_files = {*view_table(settings, VIEW).names()}
    # Ten corrections, ten new orders.
    raw = land(settings, 2_990, 20, AS_OF + DAY)
    write_views(settings, ORDERS, raw)
    write_views(plain_settings, ORDERS, raw)
    assert view_table(settings, VIEW).version == 2
    assert view_rows(settings).equals(view_rows(plain_settings))
    assert first_files - {*view_table(settings, VIEW).names()}


START = """
import sys
from upath import UPath
from core.errors import DataError
from feature_engine.engines import spark
spark.WORKER_SECONDS = 5
try:
    spark.connect(sys.argv[1], UPath("scratch"))
except DataError as exc:
    print(exc)
"""


def test_a_cluster_without_a_free_worker_is_reported_in_one_line(cluster, tmp_path):
    cluster.kill_workers()
    output = subprocess.check_output(
        [sys.executable, "-W", "ignore", "-c", START, cluster.address], cwd=PROJECT,
        env=os.environ | {"SPARK_CONF_DIR": str(spark_defaults(tmp_path))}, text=True,
    )  # fmt: skip
    (line,) = output.splitlines()
    assert line.startswith(f"no worker of {cluster.address} was free for 5 s: ")

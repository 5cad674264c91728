"""Executors on other hosts read and write Delta tables on S3; the driver commits once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from core.errors import DataError
from core.project import PROJECT
from tests.cluster.conftest import MARKS, PACKAGES
from tests.conftest import wait_until
from tests.faults.conftest import standing_still
from tests.support.feature_engine.cluster_shop import ORDERS, Shop

pytestmark = MARKS
START = datetime(2023, 1, 1, tzinfo=UTC)
MINUTES = 3 * 365 * 1440


def orders(count):
    """Made-up orders of about forty periods."""
    rows = [
        {
            "order_id": n,
            "customer_id": n * 31 % 997,
            "event_timestamp": START
            + timedelta(minutes=n * 7919 % MINUTES, microseconds=n),
            "cents": n * 17 % 10_000,
            "note": f"order {n}",
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, ORDERS)


@pytest.fixture
def shop(cluster, tmp_path, request):
    shop = Shop(tmp_path, request.node.name.replace("_", "-")[:40])
    shop.raw.merge(orders(20_000), ["order_id"], ["cents"])
    return shop


@contextmanager
def stopped_after_files(cluster, shop, count):
    """Stop S3 once `count` files of features are written; it goes on after the block."""
    log = cluster.folder / "s3.log"
    start = log.stat().st_size
    request = f"PUT /{shop.view.path.path}/period"

    def are_written():
        with log.open() as lines:
            lines.seek(start)
            return lines.read().count(request) >= count

    wait_until(f"{count} files", are_written)
    with standing_still(cluster.s3):
        yield


def test_a_worker_killed_while_it_writes_neither_loses_nor_repeats_a_row(
    spark, cluster, shop
):
    with ThreadPoolExecutor() as threads:
        job = threads.submit(shop.write, spark)
        with stopped_after_files(cluster, shop, 3):
            assert not job.done()
            cluster.kill_worker(1)
        files = job.result()
    shop.commit(files)
    assert shop.stored().equals(shop.computed())
    names = {file.path.rpartition("/")[2] for file in files}
    assert names <= shop.objects()  # and what the killed worker may have left


DRIVER = """
import sys
from pathlib import Path
from tests.cluster.conftest import spark_session
from tests.support.feature_engine.cluster_shop import Shop
folder, name, master = sys.argv[1:]
Shop(Path(folder), name).write(spark_session(master))
"""


def test_a_driver_killed_while_executors_write_changes_no_row_and_its_files_are_deleted(
    spark, cluster, shop, tmp_path
):
    shop.commit(shop.write(spark))
    rows = shop.stored()
    version = shop.view.version
    committed = shop.objects()
    name = shop.raw.path.parts[1]
    command = [sys.executable, "-c", DRIVER, str(tmp_path), name, cluster.address]
    applications = cluster.running_applications()
    with (
        subprocess.Popen(command, cwd=PROJECT) as driver,
        stopped_after_files(cluster, shop, 3),
    ):
        driver.kill()
    wait_until("its end", lambda: cluster.running_applications() <= applications)
    assert shop.view.version == version
    assert shop.stored().equals(rows)
    orphans = shop.objects() - committed
    assert len(orphans) >= 3
    now = datetime.now(UTC)
    assert shop.view.clean_up(None, now) == (0, 0)  # all are younger than the retention
    retention = {"delta.deletedFileRetentionDuration": "interval 0 days"}
    shop.view._open().alter.set_table_properties(retention)
    assert shop.view.clean_up(None, now) == (0, len(orphans))
    assert shop.objects() == committed
    assert shop.stored().equals(rows)


def test_a_worker_without_a_package_is_reported_in_one_line_that_names_both(
    spark, cluster, shop
):
    from feature_engine.engines import job_errors  # noqa: PLC0415  (needs PySpark)

    package = "deltalake"
    cluster.kill_workers()
    address = cluster.start_worker(1, PACKAGES.replace(f" {package} ", " "))
    with pytest.raises(DataError) as error, job_errors.one_line_errors():
        shop.read(spark).toArrow()
    cluster.kill_workers()
    line = str(error.value)
    assert line.startswith(
        f"Spark's worker {address} has no Python package {package}: "
    )
    assert "\n" not in line

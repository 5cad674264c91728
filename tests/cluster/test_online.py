"""Executors on other hosts write online values: those of DuckDB, and none over a newer one."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from random import Random

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis import Redis

from core.settings import PROJECT
from feature_repo.datasets import load_dataset
from feature_repo.entities import ViewValues
from feature_repo.features import raw_table
from feature_repo.online_state import STATE_JSON
from feature_repo.online_values import OnlineValues
from feature_repo.online_writer import hash_fields, hash_names
from feature_repo.refresh import refresh_online
from feature_repo.views import view_table, write_views
from tests.cluster.conftest import HOST
from tests.conftest import (
    AS_OF,
    feast_apply,
    new_settings,
    redis_server,
    unused_port,
    wait_until,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings(
        "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
]
DATASET = load_dataset("orders")
VIEW = "customer_features"
STATE = f"gyre:online:gyre:{VIEW}"
PASSWORD = "known-to-executors-alone"
CUSTOMERS = 120_000
"""More than a wave."""
DAY = timedelta(days=1)


def moment():
    return AS_OF


class Shop:
    """A shop with a table of orders on S3, and two databases of one Redis."""

    def __init__(self, folder, name, cluster, port):
        self.address = f"redis://:{PASSWORD}@{HOST}:{port}"
        self.settings = new_settings(
            folder / "home",
            data_url=f"s3://gyre/{name}",
            engine="spark",
            spark_master=cluster.address,
            redis_url=f"{self.address}/0",
        )
        self.duckdb_settings = self.settings.model_copy(
            update={"engine": "duckdb", "redis_url": f"{self.address}/1"}
        )
        self.raw = raw_table(self.settings, DATASET)
        feast_apply(self.settings)

    def land(self, first_order, first_customer, customers):
        """Land an order of each of some customers, and compute the view."""
        numbers = range(customers)
        times = [AS_OF - (40 + number % 40) * DAY for number in numbers]
        columns = {
            "order_id": [first_order + number for number in numbers],
            "customer_id": [first_customer + number for number in numbers],
            "order_ts": times,
            "number_of_cds": [1] * customers,
            "dollar_value": [number % 1_000 / 4 for number in numbers],
            "ingested_at": [AS_OF] * customers,
            "superseded": [None] * customers,
        }
        rows = pa.table(columns, self.raw.schema)
        self.raw.merge(rows, DATASET.key, DATASET.schema.names)
        write_views(self.duckdb_settings, DATASET, self.raw)

    def refresh(self):
        refresh_online(self.settings, DATASET, self.raw, moment)

    def refresh_with_duckdb(self):
        refresh_online(self.duckdb_settings, DATASET, self.raw, moment)

    def hashes(self, database):
        """Return all hashes with online values."""
        with Redis.from_url(f"{self.address}/{database}") as redis:
            names = [
                name for name in redis.scan_iter(count=10_000) if name.endswith(b"gyre")
            ]
            with redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(name)
                return dict(zip(names, pipe.execute(), strict=True))

    def assert_same_hashes(self, count):
        executors_hashes = self.hashes(0)
        assert len(executors_hashes) == count
        assert executors_hashes == self.hashes(1)

    def scratch_files(self):
        return [*self.settings.scratch.glob("**/*.parquet")]


@pytest.fixture(scope="module")
def port(whole_cluster):
    port = unused_port()
    with redis_server(port, whole_cluster.folder, HOST):
        Redis(HOST, port).config_set("requirepass", PASSWORD)
        yield port


@pytest.fixture
def shop(cluster, spark, port, tmp_path, request):
    shop = Shop(tmp_path, request.node.name.replace("_", "-")[:30], cluster, port)
    with Redis.from_url(shop.address) as redis:
        redis.flushall()
    shop.land(1, 1, CUSTOMERS)
    return shop


def test_executors_write_online_what_duckdb_writes_and_no_page_shows_the_password(
    shop, spark, cluster
):
    shop.refresh()
    shop.refresh_with_duckdb()
    shop.assert_same_hashes(CUSTOMERS)
    # Orders of the first thousand customers become those of new ones, who have no other.
    shop.land(1, CUSTOMERS + 1, 1_000)
    shop.refresh()
    shop.refresh_with_duckdb()
    shop.assert_same_hashes(CUSTOMERS)
    assert not shop.scratch_files()
    driver = f"http://{HOST}:4040"
    application = f"{driver}/api/v1/applications/{spark.sparkContext.applicationId}"
    pages = [
        f"{application}/environment",
        f"{application}/jobs",
        f"{application}/sql?details=true&planDescription=true&length=1000",
        f"{application}/stages?details=true",
        f"{driver}/SQL/",
        f"{driver}/environment/",
        f"{driver}/jobs/",
        f"{driver}/stages/",
        f"{cluster.page}/json/",
    ]
    for page in pages:
        text = httpx.get(page).raise_for_status().text
        assert PASSWORD not in text
        assert "redis://" not in text


class Consumer:
    """Writes values as the event consumer does: what a customer has spent grows with each event."""

    def __init__(self, shop):
        self._shop = shop
        self._chance = Random(1)
        self.spent = {}

    def run(self, is_over):
        """Write until an event, and see that what was written before is as it was written."""
        row = pq.read_table(view_table(self._shop.settings, VIEW).files()[0]).slice(
            0, 1
        )
        row = row.drop_columns(["period"]) if "period" in row.column_names else row
        with closing(
            OnlineValues(self._shop.settings, DATASET, self._shop.raw)
        ) as online:
            view = online.views[VIEW]
            config = online.store.config
            _, field = hash_fields(config, view, ["lifetime_value"])
            version = self._shop.raw.version + 1
            while not is_over.wait(0.02):
                spent = 10_000.0 + len(self.spent)
                customers = self._chance.sample(range(1, CUSTOMERS + 1), 5)
                rows = pa.concat_tables(
                    with_columns(row, customer, spent) for customer in customers
                )
                with online.lock():
                    online.write([ViewValues(view, rows)], version)
                for name in hash_names(config, view, [(key,) for key in customers]):
                    self.spent[name] = online.redis.hget(name, field)
                self.check(online.redis, field, 20)
            self.check(online.redis, field, len(self.spent))

    def check(self, redis, field, count):
        names = self._chance.sample([*self.spent], min(count, len(self.spent)))
        for name in names:
            assert redis.hget(name, field) == self.spent[name]


def with_columns(row, customer, spent):
    """Return a row of the view for a customer."""
    for name, value in {"customer_id": customer, "lifetime_value": spent}.items():
        position = row.column_names.index(name)
        row = row.set_column(position, name, pa.array([value], row[name].type))
    return row


def test_events_that_arrive_during_a_refresh_are_neither_lost_nor_overwritten(shop):
    consumer = Consumer(shop)
    is_over = threading.Event()
    with ThreadPoolExecutor() as threads:
        job = threads.submit(consumer.run, is_over)
        try:
            wait_until("the first event", lambda: consumer.spent or job.done())
            shop.refresh()
        finally:
            is_over.set()
        job.result()
    assert len(consumer.spent) > 20
    shop.refresh_with_duckdb()
    executors_hashes = shop.hashes(0)
    duckdb_hashes = shop.hashes(1)
    assert len(executors_hashes) == CUSTOMERS
    differing_names = {
        name for name in duckdb_hashes if executors_hashes[name] != duckdb_hashes[name]
    }
    assert differing_names == consumer.spent.keys()


DRIVER = """
import sys
from core.settings import Settings
from tests.cluster.conftest import spark_session
from tests.cluster.test_online import DATASET, moment
from feature_repo.features import raw_table
from feature_repo.refresh import refresh_online
settings = Settings.model_validate_json(sys.argv[1])
spark_session(settings.spark_master)
refresh_online(settings, DATASET, raw_table(settings, DATASET), moment)
"""


def test_what_a_killed_driver_left_half_written_the_next_refresh_completes(
    shop, cluster
):
    applications = {*cluster.running_applications()}
    command = [sys.executable, "-c", DRIVER, shop.settings.model_dump_json()]
    with (
        Redis.from_url(shop.address) as redis,
        subprocess.Popen(command, cwd=PROJECT) as driver,
    ):
        wait_until("a part", lambda: redis.dbsize() > 10_000, process=driver)
        driver.kill()
        driver.wait()
        wait_until(
            "the end of its executors",
            lambda: {*cluster.running_applications()} <= applications,
        )
        assert redis.dbsize() < CUSTOMERS
        assert STATE_JSON.validate_json(redis.get(STATE)).next is not None
    assert shop.scratch_files()
    shop.refresh()
    shop.refresh_with_duckdb()
    shop.assert_same_hashes(CUSTOMERS)
    assert not shop.scratch_files()

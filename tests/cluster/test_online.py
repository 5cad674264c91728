"""Executors on other hosts write online values: those of DuckDB, and none over a newer one."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from random import Random

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
from tests.cluster.conftest import HOST, MARKS, page_texts
from tests.conftest import (
    AS_OF,
    feast_apply,
    new_settings,
    redis_server,
    unused_port,
    wait_until,
)

pytestmark = [
    *MARKS,
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
        columns = {
            "order_id": [first_order + number for number in numbers],
            "customer_id": [first_customer + number for number in numbers],
            "order_ts": [AS_OF - (40 + number % 40) * DAY for number in numbers],
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

    def assert_refreshed_alike(self):
        """Executors write the hashes that DuckDB writes, and leave no file."""
        self.refresh()
        self.refresh_with_duckdb()
        executors_hashes = self.hashes(0)
        assert len(executors_hashes) == CUSTOMERS
        assert executors_hashes == self.hashes(1)
        assert not self.scratch_files()

    def hashes(self, database):
        """Return all hashes with online values."""
        with Redis.from_url(f"{self.address}/{database}") as redis:
            names = [*redis.scan_iter("*gyre", count=10_000)]
            with redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(name)
                return dict(zip(names, pipe.execute(), strict=True))

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


def test_executors_write_the_online_values_of_duckdb_and_no_page_shows_the_password(
    shop, spark, cluster
):
    shop.assert_refreshed_alike()
    # Orders of the first thousand customers become those of new ones, who have no other.
    shop.land(1, CUSTOMERS + 1, 1_000)
    shop.assert_refreshed_alike()
    for text in page_texts(spark, cluster):
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
        shop = self._shop
        file = view_table(shop.settings, VIEW).files()[0]
        row = pq.read_table(file, partitioning=None).slice(0, 1)
        (values,) = row.to_pylist()
        with closing(OnlineValues(shop.settings, DATASET, shop.raw)) as online:
            view = online.views[VIEW]
            config = online.store.config
            _, field = hash_fields(config, view, ["lifetime_value"])
            version = shop.raw.version + 1
            while not is_over.wait(0.02):
                values["lifetime_value"] = 10_000.0 + len(self.spent)
                customers = self._chance.sample(range(1, CUSTOMERS + 1), 5)
                rows = [values | {"customer_id": customer} for customer in customers]
                table = pa.Table.from_pylist(rows, row.schema)
                with online.lock():
                    online.write([ViewValues(view, table)], version)
                for name in hash_names(config, view, [(key,) for key in customers]):
                    self.spent[name] = online.redis.hget(name, field)
                self.check(online.redis, field, 20)
            self.check(online.redis, field, len(self.spent))

    def check(self, redis, field, count):
        names = self._chance.sample([*self.spent], min(count, len(self.spent)))
        for name in names:
            assert redis.hget(name, field) == self.spent[name]


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


def test_the_next_refresh_completes_the_writes_of_a_killed_driver(shop, cluster):
    applications = cluster.running_applications()
    command = [sys.executable, "-c", DRIVER, shop.settings.model_dump_json()]
    with (
        Redis.from_url(shop.address) as redis,
        subprocess.Popen(command, cwd=PROJECT) as driver,
    ):
        wait_until("a part", lambda: redis.dbsize() > 10_000, process=driver)
        driver.kill()
        driver.wait()
        wait_until("its end", lambda: cluster.running_applications() <= applications)
        assert redis.dbsize() < CUSTOMERS
        assert STATE_JSON.validate_json(redis.get(STATE)).next is not None
    assert shop.scratch_files()
    shop.assert_refreshed_alike()

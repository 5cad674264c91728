"""What is online is one rule: the newest row of each entity, whatever happened in between."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis import Redis

from core.settings import PROJECT
from feature_repo.entities import ViewValues
from feature_repo.features import raw_table
from feature_repo.online_state import STATE_JSON
from feature_repo.online_values import OnlineValues
from feature_repo.online_writer import encode_rows, write_encoded_rows
from feature_repo.refresh import refresh_online
from feature_repo.views import view_table, write_views
from stack.environment import child_environment
from tests.conftest import AS_OF, wait_until
from tests.feature_repo.conftest import online_reader
from tests.feature_repo.test_events import (  # noqa: F401  (fixtures among them)
    DAY,
    FIRST,
    HOUR,
    LATER,
    MINUTE,
    ORDERS,
    SPEC,
    feature_rows,
    ingested,
    order,
    shop,
)
from tests.preloaded import commands_folder

VIEW = "customer_features"
STATE = f"gyre:online:gyre:{VIEW}"
AHEAD = f"gyre:ahead:gyre:{VIEW}"


def state_of(redis):
    return STATE_JSON.validate_json(redis.get(STATE))


def hashes(redis):
    """Names of the hashes that hold values of entities."""
    return {name for name in redis.scan_iter() if name.endswith(b"gyre")}


def test_an_event_that_the_source_takes_back_before_the_next_ingest_leaves_nothing(
    shop,
):
    shop.receives(AS_OF + MINUTE, order(2, 9, AS_OF, 2.0))
    assert shop.spent(9) == 2.0
    assert shop.redis.zcard(AHEAD) == 1
    shop.has(FIRST, order(2, 1, AS_OF, 2.0))
    shop.ingest(LATER)
    assert (shop.spent(1), shop.online(9)) == (7.0, None)
    assert len(hashes(shop.redis)) == 1
    assert shop.redis.zcard(AHEAD) == 0


def test_a_key_that_the_consumer_wrote_and_no_row_explains_is_deleted(shop):
    """As if the raw rows of an event had been erased."""
    name = next(iter(hashes(shop.redis)))
    other = name.replace((1).to_bytes(8, "little"), (77).to_bytes(8, "little"))
    shop.redis.hset(other, mapping=shop.redis.hgetall(name))
    shop.redis.zadd(AHEAD, {json.dumps([77]): 0})
    assert shop.spent(77) == 5.0
    shop.ingest(LATER)
    assert shop.online(77) is None
    assert hashes(shop.redis) == {name}


def assert_consumer_values_stay(shop):
    """They stand on a later moment, at which more rows are due."""
    shop.receives(AS_OF + MINUTE, order(2, 77, AS_OF, 3.0), order(3, 1, AS_OF, 2.0))
    raw = raw_table(shop.settings, ORDERS)
    write_views(shop.settings, ORDERS, raw)
    before = AS_OF - 11 * DAY

    def moment():
        """Called when the keys of before are taken."""
        shop.redis.zadd(
            AHEAD, dict.fromkeys([json.dumps([1]), json.dumps([77])], raw.version)
        )
        return before

    shop.redis.delete(STATE)
    refresh_online(shop.settings, ORDERS, raw, moment)
    assert (shop.spent(1), shop.spent(77)) == (7.0, 3.0)


def test_what_the_consumer_writes_during_a_refresh_stays(shop):
    assert_consumer_values_stay(shop)


def many_rows(shop, spent):
    """Return rows of the view of 1,000 customers, who have spent as much."""
    rows = feature_rows(shop).slice(0, 1)
    rows = rows.take([0] * 1_000)
    for name, values in {
        "customer_id": range(1, 1_001),
        "lifetime_value": [spent] * 1_000,
    }.items():
        position = rows.column_names.index(name)
        column = pa.array(values, rows[name].type)
        rows = rows.set_column(position, name, column)
    return rows


def test_an_executor_whose_driver_is_gone_overwrites_nothing_that_the_consumer_writes(
    shop,
):
    """The feature lock is free, and the executor goes on."""
    with closing(
        OnlineValues(shop.settings, ORDERS, raw_table(shop.settings, ORDERS))
    ) as online:
        view = online.views[VIEW]
        newer_rows = many_rows(shop, 2.0)
        encoded_rows = encode_rows(online.store.config, view, many_rows(shop, 1.0))
        is_over = threading.Event()

        def executor():
            while not is_over.is_set():
                write_encoded_rows(shop.settings.redis_address, 10, AHEAD, encoded_rows)

        with ThreadPoolExecutor() as threads:
            job = threads.submit(executor)
            for number in Random(1).sample(range(1_000), 1_000):
                values = ViewValues(view, newer_rows.slice(number, 1))
                online.write([values], 10**6)
            is_over.set()
            job.result()
    with closing(
        online_reader(shop.settings, SPEC.feature_service, SPEC.features)
    ) as reader:
        keys = [{"customer_id": customer} for customer in range(1, 1_001)]
        rows = reader.read(keys, LATER)
    assert {row["lifetime_value"] for row in rows} == {2.0}


def test_values_of_a_version_that_is_gone_are_written_anew_and_strangers_deleted(shop):
    name = next(iter(hashes(shop.redis)))
    other = name.replace((1).to_bytes(8, "little"), (77).to_bytes(8, "little"))
    shop.redis.hset(other, mapping=shop.redis.hgetall(name))
    shop.redis.hdel(name, *shop.redis.hkeys(name))
    version = state_of(shop.redis).version
    shop.has(FIRST, order(2, 2, AS_OF, 2.0))
    shop.ingest(LATER)
    assert (shop.spent(2), shop.spent(1), shop.spent(77)) == (
        2.0,
        None,
        5.0,
    )  # no change, no write
    view_table(shop.settings, VIEW).purge()
    shop.redis.set(
        STATE, json.dumps({"version": version, "time": LATER.isoformat(), "next": None})
    )
    shop.ingest(LATER + HOUR)
    assert (shop.spent(2), shop.spent(1), shop.spent(77)) == (2.0, 5.0, None)


def test_a_row_that_becomes_due_between_two_refreshes_goes_online_without_an_event(
    shop,
):
    """The only order leaves the window of 30 days."""
    shop.ingest(AS_OF + 19 * DAY)
    before = shop.online(1, AS_OF + 19 * DAY)
    shop.ingest(AS_OF + 21 * DAY)
    after = shop.online(1, AS_OF + 21 * DAY)
    assert (before["total_orders_30d"], after["total_orders_30d"]) == (1, 0)
    assert (before["total_orders_90d"], after["total_orders_90d"]) == (1, 1)


def test_after_a_materialisation_by_hand_the_next_ingest_makes_all_right(shop):
    shop.receives(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    command = [
        "feast",
        "materialize",
        "2000-01-01T00:00:00",
        (AS_OF - HOUR).isoformat()[:19],
    ]
    shop.redis.flushall()
    own = child_environment(shop.settings)
    subprocess.run(
        [commands_folder() / command[0], *command[1:]],
        cwd=PROJECT / "feature_repo",
        env=own,
        check=True,
        capture_output=True,
    )
    assert shop.spent(1) == 5.0  # as Feast's docs say
    shop.stream.declare(shop.consumer.schema)
    shop.ingest(LATER)
    assert shop.spent(1) == 7.0


@contextmanager
def gyre(settings, *arguments):
    """A `gyre` command in a process of its own, that is killed with the block."""
    process = subprocess.Popen(
        [commands_folder() / "gyre", *arguments],
        cwd=PROJECT,
        env=child_environment(settings)
        | {"GYRE_SOURCES__ORDERS": settings.sources["orders"]},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class BigShop:
    """A shop with many customers, one order each, beside which events arrive."""

    def __init__(self, settings, folder, customers):
        folder.mkdir()
        self.settings = settings.model_copy(update={"sources": {"orders": str(folder)}})
        self.folder = folder
        self.customers = customers
        self.now = datetime.now(UTC)
        self.redis = Redis.from_url(settings.redis_address)
        self.deliver(0)

    def deliver(self, number):
        """Have the source deliver one more order of every customer."""
        numbers = np.arange(1, self.customers + 1)
        moment = self.now - timedelta(hours=30 - number)
        columns = {
            "order_id": numbers + number * self.customers,
            "customer_id": numbers,
            "order_ts": pa.array([moment] * self.customers, pa.timestamp("us", "UTC")),
            "number_of_cds": np.ones(self.customers, np.int64),
            "dollar_value": np.full(self.customers, 20.0),
        }
        pq.write_table(pa.table(columns), self.folder / f"{number}.parquet")

    def ingest(self):
        with gyre(self.settings, "ingest", "orders", "--full") as process:
            assert process.wait(900) == 0

    def send(self, number, customer):
        now = datetime.now(UTC).isoformat()
        event = order(10**9 + number, customer, now)
        self.redis.xadd("gyre:events:orders", {"events": json.dumps([event])})

    def counts(self, reader, customers):
        keys = [{"customer_id": customer} for customer in customers]
        return [row["lifetime_orders"] for row in reader.read(keys, datetime.now(UTC))]


def test_a_refresh_that_is_killed_half_way_is_completed_by_the_next(applied, tmp_path):
    shop = BigShop(applied, tmp_path / "source", 20_000)
    shop.ingest()
    shop.deliver(1)
    with (
        shop.redis.monitor() as monitor,
        gyre(shop.settings, "ingest", "orders") as process,
    ):
        writes = 0
        for command in monitor.listen():
            writes += command["command"].startswith("HSET")
            if writes == 1_000:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    assert state_of(shop.redis).next is not None
    with closing(
        online_reader(shop.settings, SPEC.feature_service, SPEC.features)
    ) as reader:
        every = range(1, 20_001)
        assert set(shop.counts(reader, every)) == {1, 2}
        shop.ingest()
        assert set(shop.counts(reader, every)) == {2}
    assert state_of(shop.redis).next is None


def values_never_go_back(shop):
    """Read some customers while events arrive and all customers are refreshed."""
    chance = Random(1)
    watched = chance.sample(range(1, shop.customers + 1), 20)
    shop.ingest()
    shop.deliver(1)
    sent = dict.fromkeys(watched, 0)
    with (
        gyre(shop.settings, "consume"),
        closing(
            online_reader(shop.settings, SPEC.feature_service, SPEC.features)
        ) as reader,
        gyre(shop.settings, "ingest", "orders", "--full") as ingest,
    ):
        counts = shop.counts(reader, watched)
        number = 0
        last_send = time.monotonic()
        while ingest.poll() is None:
            if time.monotonic() >= last_send + 0.02:
                last_send = time.monotonic()
                customer = chance.choice(watched)
                shop.send(number, customer)
                sent[customer] += 1
                number += 1
            newer_counts = shop.counts(reader, watched)
            assert all(
                new >= old for old, new in zip(counts, newer_counts, strict=True)
            ), (
                counts,
                newer_counts,
                sent,
                state_of(shop.redis),
            )
            counts = newer_counts
        assert ingest.returncode == 0
        expected = [2 + sent[customer] for customer in watched]
        wait_until("all events", lambda: shop.counts(reader, watched) == expected)
    shop.ingest()
    assert number > 50


def test_no_value_goes_back_while_events_arrive_during_a_refresh(applied, tmp_path):
    values_never_go_back(BigShop(applied, tmp_path / "source", 20_000))


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
def test_no_value_goes_back_while_events_arrive_during_a_refresh_of_a_million(
    applied, tmp_path
):
    values_never_go_back(BigShop(applied, tmp_path / "source", 1_000_000))

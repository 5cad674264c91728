"""What is online is one rule: the newest row of each entity, whatever happened in between."""

import json
import signal
import time
from contextlib import closing
from datetime import UTC, datetime
from random import Random

import pyarrow.parquet as pq
import pytest
from redis import Redis

from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import view_table, write_views
from feature_engine.online.refresh import refresh_online
from feature_engine.online.state import STATE_JSON
from stack.environment import process_environment
from tests.conftest import AS_OF, running, wait_until
from tests.feature_engine.events.test_events import (  # noqa: F401  (fixtures among them)
    DAY,
    FIRST,
    HOUR,
    LATER,
    MINUTE,
    ORDERS,
    SECOND,
    VIEW,
    ingested,
    order,
    shop,
)
from tests.feature_engine.ingest.test_ingest import SPEC, Shop, order_table
from tests.support.installation import online_reader
from tests.support.preloaded import commands_folder

STATE = f"gyre:online:gyre:{VIEW}"
AHEAD = f"gyre:ahead:gyre:{VIEW}"


def state_of(redis):
    return STATE_JSON.validate_json(redis.get(STATE))


def hashes(redis):
    """Names of the hashes that hold values of entities."""
    return {name for name in redis.scan_iter() if name.endswith(b"gyre")}


def copy_hash(shop, customer):
    """Write the values of customer 1 for another customer too; return the hash of customer 1."""
    (name,) = hashes(shop.redis)
    other = name.replace((1).to_bytes(8, "little"), customer.to_bytes(8, "little"))
    shop.redis.hset(other, mapping=shop.redis.hgetall(name))
    return name


def test_the_next_ingest_deletes_online_values_that_no_row_explains(shop):
    """An event that the source takes back, and values as if raw rows had been erased."""
    name = copy_hash(shop, 77)
    shop.redis.zadd(AHEAD, {"[77]": 0})
    shop.receives(AS_OF + MINUTE, order(2, 9, AS_OF, 2.0))
    assert (shop.spent(9), shop.spent(77)) == (2.0, 5.0)
    assert shop.redis.zcard(AHEAD) == 2
    shop.has(FIRST, SECOND)
    shop.ingest(LATER)
    assert (shop.spent(1), shop.spent(9), shop.spent(77)) == (7.0, None, None)
    assert hashes(shop.redis) == {name}
    assert shop.redis.zcard(AHEAD) == 0


def test_values_written_by_the_consumer_during_a_refresh_stay(shop):
    """They stand on a later moment, at which more rows are due."""
    shop.receives(AS_OF + MINUTE, order(2, 77, AS_OF, 3.0), order(3, 1, AS_OF, 2.0))
    raw = raw_table(shop.settings, ORDERS)
    write_views(shop.settings, ORDERS, raw)

    def moment():
        """Called when the keys of before are taken."""
        shop.redis.zadd(AHEAD, {"[1]": raw.version, "[77]": raw.version})
        return AS_OF - 11 * DAY

    shop.redis.delete(STATE)
    refresh_online(shop.settings, ORDERS, raw, moment)
    assert (shop.spent(1), shop.spent(77)) == (7.0, 3.0)


def test_a_refresh_from_a_missing_version_writes_all_values_and_deletes_others(shop):
    name = copy_hash(shop, 77)
    shop.redis.delete(name)
    version = state_of(shop.redis).version
    shop.has(FIRST, order(2, 2, AS_OF, 2.0))
    shop.ingest(LATER)
    # What has not changed is not written.
    assert [shop.spent(customer) for customer in (1, 2, 77)] == [None, 2.0, 5.0]
    view_table(shop.settings, VIEW).purge()
    state = {"version": version, "time": LATER.isoformat(), "next": None}
    shop.redis.set(STATE, json.dumps(state))
    shop.ingest(LATER + HOUR)
    assert [shop.spent(customer) for customer in (1, 2, 77)] == [5.0, 2.0, None]


def gyre(settings, *arguments):
    """Run a `gyre` command in a process that is killed with the block."""
    command = [str(commands_folder() / "gyre"), *arguments]
    environment = process_environment(settings)
    environment["GYRE_SOURCES__ORDERS"] = settings.sources["orders"]
    return running(command, settings.home / "gyre.log", **environment)


class BigShop(Shop):
    """A shop with many customers, one order each, that are ingested."""

    def __init__(self, settings, folder, customers):
        super().__init__(settings, folder)
        self.customers = customers
        self.now = datetime.now(UTC)
        self.redis = Redis.from_url(settings.redis_address)
        self.deliver(0)
        self.ingest()
        self.reader = online_reader(settings, SPEC.feature_service, SPEC.features)

    def deliver(self, number):
        """Have the source deliver one more order of every customer."""
        moment = self.now - (30 - number) * HOUR
        orders = [
            order(number * self.customers + customer, customer, moment)
            for customer in range(1, self.customers + 1)
        ]
        pq.write_table(order_table(*orders), self.file / f"{number}.parquet")

    def ingest(self):
        with gyre(self.settings, "ingest", "orders", "--full") as process:
            assert process.wait(900) == 0

    def send(self, number, customer):
        event = order(10**9 + number, customer, datetime.now(UTC).isoformat())
        self.redis.xadd("gyre:events:orders", {"events": json.dumps([event])})

    def counts(self, customers):
        """Return how many orders of each customer are online."""
        keys = [{"customer_id": customer} for customer in customers]
        rows = self.reader.read(keys, datetime.now(UTC))
        counts = [row["lifetime_orders"] for row in rows]
        # Every order is of 10 dollars: the values of a customer are of one refresh.
        assert [row["total_spend_30d"] / 10.0 for row in rows] == counts
        return counts


def complete_a_killed_refresh(shop, delivery):
    """Kill an ingest while it writes online; the next one brings the rest online."""
    shop.deliver(delivery)
    with (
        shop.redis.monitor() as monitor,
        gyre(shop.settings, "ingest", "orders") as process,
    ):
        writes = 0
        for command in monitor.listen():
            writes += command["command"].startswith("HSET")
            if writes == 1_000:
                process.kill()
                break
        assert process.wait() == -signal.SIGKILL
    assert state_of(shop.redis).next is not None
    customers = range(1, shop.customers + 1)
    assert set(shop.counts(customers)) == {delivery, delivery + 1}
    shop.ingest()
    assert set(shop.counts(customers)) == {delivery + 1}
    assert state_of(shop.redis).next is None


def refresh_while_events_arrive(shop, delivery):
    """Deliver an order of every customer: no count of those that are read becomes smaller."""
    chance = Random(1)
    customers = chance.sample(range(1, shop.customers + 1), 20)
    event_counts = dict.fromkeys(customers, 0)
    shop.deliver(delivery)
    with (
        gyre(shop.settings, "consume"),
        gyre(shop.settings, "ingest", "orders", "--full") as ingest,
    ):
        last_counts = shop.counts(customers)
        last_send = time.monotonic()
        while ingest.poll() is None:
            if time.monotonic() >= last_send + 0.02:
                last_send = time.monotonic()
                customer = chance.choice(customers)
                shop.send(sum(event_counts.values()), customer)
                event_counts[customer] += 1
            new_counts = shop.counts(customers)
            pairs = zip(last_counts, new_counts, strict=True)
            assert all(new >= last for last, new in pairs), (last_counts, new_counts)
            last_counts = new_counts
        assert ingest.returncode == 0
        expected = [delivery + 1 + event_counts[customer] for customer in customers]
        wait_until("all events", lambda: shop.counts(customers) == expected)
    assert sum(event_counts.values()) > 50


def test_a_killed_refresh_is_completed_and_events_meanwhile_bring_back_no_older_value(
    applied, tmp_path
):
    shop = BigShop(applied, tmp_path, 20_000)
    with closing(shop.reader):
        complete_a_killed_refresh(shop, delivery=1)
        refresh_while_events_arrive(shop, delivery=2)


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
def test_events_during_a_refresh_of_a_million_customers_bring_back_no_older_value(
    applied, tmp_path
):
    shop = BigShop(applied, tmp_path, 1_000_000)
    with closing(shop.reader):
        refresh_while_events_arrive(shop, delivery=1)

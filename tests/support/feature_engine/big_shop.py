"""A shop with many customers, whose refresh is killed or meets events."""

import json
import signal
import time
from datetime import UTC, datetime
from random import Random

import pyarrow.parquet as pq
from redis import Redis

from feature_engine.online.state import STATE_JSON
from stack.environment import process_environment
from tests.conftest import running, wait_until
from tests.support.feature_engine.installation import online_reader
from tests.support.feature_engine.shop import HOUR, SPEC, VIEW, Shop, order, order_table
from tests.support.tools.preloaded import commands_folder

STATE = f"gyre:online:gyre:{VIEW}"


def state_of(redis):
    return STATE_JSON.validate_json(redis.get(STATE))


def hashes(redis):
    """Names of the hashes that hold values of entities."""
    return {name for name in redis.scan_iter() if name.endswith(b"gyre")}


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

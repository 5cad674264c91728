"""Events by Redis Streams and by a real Kafka, side by side in one run.

    python -m benchmarks.team.events [events through one consumer, 20,000 if not given]

One installation with the shipped orders, one worker and one consumer; a broker of Kafka (one, on
this machine) beside its Redis. First the seconds from the POST of an order until /predict counts
it, of 20 customers by each broker in turn. Then the events that one consumer processes in a second:
requests of 100 orders each wait on the broker, and the consumer's step is called as `gyre consume`
calls it. Three rounds, the median.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.support import servers
from benchmarks.support.measure import ROUNDS, promised, title
from feature_engine.events.broker import broker, consumer_lags
from feature_engine.ingest.consumer import EventConsumer
from feature_repo.datasets import load_dataset
from tests.conftest import unused_port
from tests.support.stores.kafka import kafka_servers

if TYPE_CHECKING:
    import httpx

    from tests.serving.conftest import Rig

BROKERS = ("redis", "kafka")
TRIES = 20
EVENTS_PER_REQUEST = 100
FIRST_NUMBER = 1_000_000
"""Numbers of orders and customers that the shipped file does not have begin here."""


class Orders:
    """Orders of today, each with a number of its own."""

    def __init__(self) -> None:
        self._number = FIRST_NUMBER

    def of(self, customer: int) -> dict[str, object]:
        self._number += 1
        return {
            "order_id": self._number,
            "customer_id": customer,
            "order_ts": datetime.now(UTC).isoformat(),
            "number_of_cds": 1,
            "dollar_value": 10.0,
        }


def by_broker(rig: Rig, name: str, address: str) -> Rig:
    """Return the installation with a broker, which its processes have too."""
    os.environ.pop("GYRE_EVENTS_URL", None)
    if name == "redis":
        return rig
    os.environ["GYRE_EVENTS_URL"] = address
    # A port of its own: the worker of the other broker may still end.
    update = {"events_url": address, "serving_port": unused_port()}
    return replace(rig, settings=rig.settings.model_copy(update=update))


def order_count(rig: Rig, client: httpx.Client, customer: int) -> int:
    """Return the number of orders that a customer is scored with."""
    answer = rig.predict_online(client, customer)
    if answer.status_code == 404:
        return 0
    return int(rig.row_of(answer)["features"]["lifetime_orders"])


def seconds_until_predict(
    rig: Rig, client: httpx.Client, orders: Orders, customer: int
) -> float:
    """Send an order; return the seconds until /predict counts it."""
    before = order_count(rig, client, customer)
    start = time.perf_counter()
    answer = client.post("/events/orders", json=orders.of(customer))
    assert answer.status_code == 202, answer.text
    while order_count(rig, client, customer) == before:
        time.sleep(0.01)
    return time.perf_counter() - start


def measure_delays(rig: Rig, orders: Orders, first_customer: int) -> list[float]:
    with rig.serving(serving_workers=1) as (client, _), rig.consuming():
        rig.known_to_be_ready(client)
        seconds = [
            seconds_until_predict(rig, client, orders, first_customer + number)
            for number in range(TRIES + 1)
        ]
    return seconds[1:]  # the first one waits for the consumer's start


def measure_rate(rig: Rig, orders: Orders, count: int) -> float:
    """Return the events that one consumer processes in a second."""
    consumer = EventConsumer(rig.settings, load_dataset("orders"), "bench")
    with closing(consumer.stream) as stream:
        stream.declare()
        requests = [
            [orders.of(1 + number % 5_000) for number in range(EVENTS_PER_REQUEST)]
            for _ in range(count // EVENTS_PER_REQUEST)
        ]

        async def put_all() -> None:
            intake = broker(rig.settings).intake()
            for request in requests:
                await intake.put("orders", intake.records(consumer.schema, request))
            await intake.close()

        asyncio.run(put_all())
        while not stream.read():
            stream.wait(1.0)
        start = time.perf_counter()
        end = start
        while consumer_lags(rig.settings)["orders"].entries:
            while consumer.step():
                end = (
                    time.perf_counter()
                )  # of the last batch, without the look at the lag
        return count / (end - start)


def main(count: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="gyre-bench-") as name,
        tempfile.TemporaryDirectory(prefix="gyre-kafka-") as kafka_folder,
        ExitStack() as opened,
    ):
        opened.callback(os.sched_setaffinity, 0, servers.CORES)
        opened.enter_context(servers.paused_stack())
        rig = servers.install(opened, Path(name))
        kafka = opened.enter_context(kafka_servers(Path(kafka_folder)))
        address = f"kafka://{kafka.settings['bootstrap.servers']}"
        orders = Orders()
        title(f"events by Redis and by Kafka, {count:,} through one consumer")
        delays: dict[str, list[float]] = {}
        for number, peer in enumerate(BROKERS):
            by_peer = by_broker(rig, peer, address)
            delays[peer] = measure_delays(
                by_peer, orders, FIRST_NUMBER + 1_000 * number
            )
        for peer, limit, longest in (("redis", 0.6, 1.5), ("kafka", 0.6, 1.5)):
            middle = statistics.median(delays[peer])
            promised(f"{peer}: event to /predict, median", middle, limit, "s")
            promised(f"{peer}: slowest of {TRIES}", max(delays[peer]), longest, "s")
        rounds = []
        for _ in range(ROUNDS):
            rates = {}
            for peer in BROKERS:
                rates[peer] = measure_rate(by_broker(rig, peer, address), orders, count)
            rounds.append(rates)
        for peer in BROKERS:
            rate = statistics.median(rates[peer] for rates in rounds)
            print(f"{peer}: events a second {rate:32,.0f}")
        ratio = statistics.median(rates["kafka"] / rates["redis"] for rates in rounds)
        promised("events a second: Kafka to Redis", ratio, 0.8, "", least=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20_000)

"""Events by real brokers that die, fill up and move, and consumers that are killed."""

import asyncio
import json
import random
import shutil
import signal
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from core.errors import BrokerUnavailableError
from feature_engine.events import kafka_broker
from feature_engine.events.broker import broker
from feature_engine.events.schema import published_schemas
from feature_engine.ingest.history import MARK
from tests.conftest import wait_until
from tests.support.feature_engine.kafka_shop import NOW, TOPIC
from tests.support.feature_engine.shop import order
from tests.support.stores.kafka import kafka_servers
from tests.support.tools.small_disk import fill, small_disk

pytestmark = pytest.mark.kafka
DYING = """
import os, signal, sys
from feature_engine.events import kafka_broker
from feature_engine.ingest import consumer
from core.settings import load_settings

def die(self, entries):
    os.kill(os.getpid(), signal.SIGKILL)

kafka_broker.KafkaStream.acknowledge = die
consumer.consume(load_settings())
"""
"""A consumer that is killed when table and online store have a batch, and Kafka knows nothing of it."""


class Client:
    """A client of serving that sends a request again until it is accepted.

    Attributes:
        amounts: Amount of each order as it was sent last.
        refusals: Number of answers 503.

    """

    def __init__(self, shop):
        self.settings = shop.settings
        (self.schema,) = published_schemas(shop.settings)
        self.amounts = {1: 5.0}
        self.refusals = 0

    def send(self, *requests):
        """Send requests of orders, one after the other, as serving stores them."""

        async def send_all():
            intake = broker(self.settings).intake()
            for request in requests:
                rows = [
                    row | {"order_ts": row["order_ts"].isoformat()} for row in request
                ]
                records = intake.records(self.schema, rows)
                is_accepted = False
                while not is_accepted:
                    try:
                        await intake.put("orders", records)
                        is_accepted = True
                    except BrokerUnavailableError:
                        self.refusals += 1
                        await asyncio.sleep(0.2)
                for row in request:
                    self.amounts[row["order_id"]] = row["dollar_value"]
            await intake.close()

        asyncio.run(send_all())


def customer_of(number):
    return number % 997 + 1


def drawn_requests(count, choice):
    """Yield requests with so many new orders in all; each tenth order corrects an earlier one."""
    number = 10
    while number < count + 10:
        request = []
        for _ in range(min(choice.choice((1, 1, 20, 300)), count + 10 - number)):
            request.append(order(number, customer_of(number), NOW, number % 90 + 0.5))
            number += 1
            if number % 10 == 0:
                earlier = choice.randrange(10, number)
                amount = float(choice.randrange(100, 200))
                request.append(order(earlier, customer_of(earlier), NOW, amount))
        yield request


def test_100_000_events_land_once_while_brokers_and_consumers_are_killed(
    company, tmp_path
):
    choice = random.Random(57)
    with kafka_servers(tmp_path, brokers=3) as kafka:
        shop = company(kafka)
        client = Client(shop)
        requests = [*drawn_requests(100_000, choice)]
        sender = threading.Thread(target=client.send, args=requests, daemon=True)
        deaths = Counter()
        started = time.monotonic()
        sender.start()
        while sender.is_alive() or not shop.is_processed():
            with shop.consuming() as one, shop.consuming() as other:
                time.sleep(choice.uniform(8, 15))
                if sender.is_alive() and deaths["broker"] < 3:
                    leader = kafka.leader(TOPIC)
                    kafka.kill(leader)
                    time.sleep(3)
                    kafka.restart(leader)
                    deaths["broker"] += 1
                if deaths["consumer"] < 6:
                    choice.choice((one, other)).send_signal(signal.SIGKILL)
                    deaths["consumer"] += 1
                    time.sleep(choice.uniform(1, 8))
                else:
                    wait_until("all events", shop.is_processed, 600)
            assert time.monotonic() < started + 1_500
        seconds = time.monotonic() - started
        print(  # noqa: T201
            f"\n{len(client.amounts):,} orders, {sum(map(len, requests)):,} events in "
            f"{seconds:.0f} s, {client.refusals} refusals, killed: {dict(deaths)}"
        )
        assert shop.amounts() == client.amounts
        spent = Counter()
        for number, amount in client.amounts.items():
            spent[customer_of(number)] += amount
        for customer in choice.sample(range(2, 998), 50):
            assert shop.spent(customer) == pytest.approx(spent[customer])
        assert shop.quarantine() == []


def test_a_consumer_killed_before_its_commit_applies_nothing_twice(company, tmp_path):
    with kafka_servers(tmp_path) as kafka:
        shop = company(kafka)
        client = Client(shop)
        for amount in (3.0, 4.0):
            client.send([order(2, 1, NOW, amount), order(3, 1, NOW, 1.0)])
            command = (str(shop.python), "-c", DYING)
            with shop.consuming(command) as dying:
                wait_until("its end", lambda: dying.poll() is not None, 120)
            assert dying.returncode == -signal.SIGKILL
            assert shop.amounts() == client.amounts
            assert shop.lag().entries > 0
        with shop.consuming():
            wait_until("the commit", shop.is_processed, 120)
        assert shop.amounts() == client.amounts
        assert shop.spent(1) == 5.0 + 4.0 + 1.0
        histories = {row["order_id"]: row["superseded"] for row in shop.raw()}
        assert [origin for _, origin, _ in json.loads(histories[2])[MARK]] == ["e", "e"]


def test_a_full_disk_refuses_events_and_loses_none_that_was_accepted(company, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with (
        small_disk(disk, megabytes=64),
        kafka_servers(tmp_path, data=disk) as kafka,
    ):
        shop = company(kafka)
        client = Client(shop)
        client.send([order(10, 1, NOW, 2.0)])
        file = fill(disk)
        # 1 MB: more than the part of the file that is allocated already.
        text = "x" * 100_000
        with pytest.raises(BrokerUnavailableError, match="Kafka: "):
            asyncio.run(flood(shop.settings, text))
        file.unlink()
        kafka.restart(1)
        client.send([order(11, 1, NOW, 3.0)], [order(12, 2, NOW), order(13, 3, NOW)])
        with shop.consuming():
            wait_until("all events", shop.is_processed, 120)
        assert shop.amounts() == client.amounts


async def flood(settings, text):
    intake = broker(settings).intake()
    for _ in range(100):
        (schema,) = published_schemas(settings)
        event = {"order_id": 1, "customer_id": 1, "note": text}
        await intake.put("orders", intake.records(schema, [event]))


def test_events_go_by_tls_and_a_login_and_no_other(company, tmp_path):
    with kafka_servers(tmp_path, secured=True) as kafka:
        shop = company(kafka)
        client = Client(shop)
        client.send([order(10, 1, NOW, 2.0)], [order(11, 1, NOW), order(12, 2, NOW)])
        with shop.consuming():
            wait_until("all events", shop.is_processed, 120)
        assert shop.amounts() == client.amounts
        wrong = shop.settings.kafka | {"sasl_password": "wrong"}
        stranger = shop.settings.model_copy(update={"kafka": wrong})
        with pytest.raises(BrokerUnavailableError) as raised:
            asyncio.run(flood(stranger, ""))
        assert "wrong" not in str(raised.value)


def test_records_that_expired_before_they_were_read_are_told(company, tmp_path, caplog):
    with kafka_servers(tmp_path) as kafka:
        shop = company(kafka)
        with shop.consumer("before") as consumer:
            shop.sends(NOW, *[order(number, 1, NOW) for number in range(10, 20)])
            shop.consumes(consumer)
        shop.sends(NOW, *[order(number, 1, NOW) for number in range(20, 30)])
        partition = next(
            number
            for number in range(6)
            if kafka.admin.list_offsets(
                {TopicPartition(TOPIC, number): OffsetSpec.latest()}
            )[TopicPartition(TOPIC, number)]
            .result()
            .offset
        )
        gone = TopicPartition(TOPIC, partition, 15)
        kafka.admin.delete_records([gone])[gone].result()
        with shop.consumer("after") as consumer:
            shop.consumes(consumer)
        assert "records were lost before they were read" in caplog.text
        assert sorted(shop.amounts()) == [1, *range(10, 20), *range(25, 30)]


def test_a_topic_that_somebody_deletes_is_made_again(company, tmp_path, monkeypatch):
    monkeypatch.setattr(kafka_broker, "LOOK_SECONDS", 1.0)
    with kafka_servers(tmp_path) as kafka:
        shop = company(kafka)
        client = Client(shop)
        client.send([order(10, 1, NOW, 2.0)])
        with shop.consumer() as consumer:
            shop.consumes(consumer)
            kafka.admin.delete_topics([TOPIC])[TOPIC].result()
            wait_until(
                "its end",
                lambda: TOPIC not in kafka.admin.list_topics(timeout=9).topics,
            )
            time.sleep(1.5)
            consumer.stream.declare()
            client.send([order(11, 1, NOW, 3.0)])

            def has_landed():
                with suppress(KafkaException):  # the group hears of the new topic
                    consumer.step()
                    consumer.stream.wait(0.5)
                return 11 in shop.amounts()

            wait_until("the event", has_landed, 120)
        assert shop.amounts() == client.amounts


def test_serving_goes_on_after_a_power_cut_that_took_the_end_of_a_log(
    company, tmp_path
):
    """The idempotent producer has a fatal error then, as its sequence has a gap."""
    with kafka_servers(tmp_path) as kafka:
        shop = company(kafka)
        disk, copy = tmp_path / "data-1", tmp_path / "copy"

        async def send():
            intake = broker(shop.settings).intake()
            (schema,) = published_schemas(shop.settings)

            async def put(number):
                row = order(number, 1, NOW) | {"order_ts": NOW.isoformat()}
                await intake.put("orders", intake.records(schema, [row]))

            async def put_again(number):
                while True:
                    try:
                        return await asyncio.wait_for(put(number), 30)
                    except BrokerUnavailableError:
                        await asyncio.sleep(0.5)

            await put(10)
            kafka.kill(1)
            shutil.copytree(disk, copy)
            kafka.start(1)
            for number in range(11, 16):
                await put_again(number)
            kafka.kill(1)
            shutil.rmtree(disk)
            copy.rename(disk)
            kafka.start(1)
            for number in range(20, 24):
                await asyncio.wait_for(put_again(number), 60)
            await intake.close()

        asyncio.run(send())
        with shop.consuming():
            wait_until("all events", shop.is_processed, 120)
        assert {10, 20, 21, 22, 23} <= {*shop.amounts()}

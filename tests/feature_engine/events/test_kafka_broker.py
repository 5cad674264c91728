"""Events by Kafka on librdkafka's mock cluster: landed by key, each once, in order."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from core.connectors import kafka
from core.errors import BrokerUnavailableError
from feature_engine.events import kafka_broker
from feature_engine.events.broker import broker, waiting
from feature_engine.events.kafka_broker import DEAD_LETTERS
from feature_engine.ingest import consumer as consumer_module
from tests.conftest import at_most
from tests.support.feature_engine.installation import Snapshot
from tests.support.feature_engine.kafka_shop import (
    FIRST,
    NOW,
    TOPIC,
    KafkaShop,
)
from tests.support.feature_engine.shop import HOUR, ORDERS, VIEW, Shop, order
from tests.support.stores.kafka import mock_kafka

pytestmark = pytest.mark.journey

MINUTE = HOUR / 60
QUICK = {"session.timeout.ms": 1_000, "heartbeat.interval.ms": 100}
"""Settings with which a group takes a second to share its partitions anew."""
SECOND = order(2, 1, NOW - HOUR, 2.0)


@pytest.fixture(scope="module")
def stocked_home(template, tmp_path_factory):
    """Customer 1 has one order, of 5 dollars."""
    file = tmp_path_factory.mktemp("source") / "orders.parquet"
    shop = Shop(template.restore(), file)
    shop.has(FIRST)
    shop.ingest(NOW - HOUR)
    return Snapshot(shop.settings, "stocked")


@pytest.fixture
def shop(stocked_home, tmp_path, monkeypatch):
    # A look at more waits for a second at the end of each partition.
    monkeypatch.setattr(kafka, "READ_COUNT", 1)
    with mock_kafka() as brokers:
        file = tmp_path / "orders.parquet"
        shop = KafkaShop(stocked_home.restore(), file, brokers, QUICK)
        shop.has(FIRST)
        yield shop


def test_events_land_once_in_their_order_and_come_again_until_they_are_acknowledged(
    shop,
):
    orders = [order(number, number % 5 + 1, NOW) for number in range(10, 40)]
    with shop.consumer("dies") as dying:
        shop.sends(NOW - 2 * MINUTE, SECOND)
        # The clock of this sender is behind: its record is the later one all the same.
        shop.sends(NOW - 9 * MINUTE, SECOND | {"dollar_value": 3.0})
        shop.sends(NOW - MINUTE, *orders, *orders[:9])
        assert shop.lag().entries == 41
        records = waiting(shop.settings, "orders")
        assert sum(b'"order_id": 2,' in record for record in records) == 2
        while len(dying.stream.read()) < 41:
            dying.stream.wait(1.0)
    assert shop.lag().entries == 41
    assert shop.lag().oldest in {NOW - 2 * MINUTE, NOW - MINUTE}
    with shop.consumer() as consumer:
        shop.consumes(consumer)
    amounts = {row["order_id"]: 10.0 for row in orders}
    assert shop.amounts() == amounts | {1: 5.0, 2: 3.0}
    assert shop.spent(1) == 5.0 + 3.0 + 60.0
    assert shop.lag() == (0, None)
    with shop.consumer("later") as consumer:
        # Newer than all of it, though the clock says otherwise: what was committed tells it.
        shop.sends(NOW - 20 * MINUTE, SECOND | {"dollar_value": 4.0})
        shop.consumes(consumer)
    assert shop.amounts()[2] == 4.0
    rows = {row["order_id"]: row for row in shop.raw()}
    assert rows[2]["ingested_at"] >= NOW - 2 * MINUTE
    assert shop.ingest(NOW + MINUTE).replaced == 0


def test_a_record_that_cannot_be_read_is_kept_with_its_place_and_stops_no_other(shop):
    with shop.consumer() as consumer:
        shop.sends(NOW, SECOND)
        shop.sends_text(NOW, 1, b"\xff no JSON")
        shop.sends(NOW, order(3, 1, NOW, 4.0))
        shop.consumes(consumer)
    assert shop.amounts() == {1: 5.0, 2: 2.0, 3: 4.0}
    (row,) = shop.quarantine()
    content = json.loads(row["row"])
    assert (content["topic"], content["offset"]) == (TOPIC, 1)
    assert content["events"].endswith(" no JSON")
    ((letter, headers),) = shop.dead_letters(TOPIC + DEAD_LETTERS, 1)
    assert letter == b"\xff no JSON"
    assert json.loads(headers["place"])["partition"] == content["partition"]
    assert b"JSON" in headers["reason"]


def test_consumers_share_a_topic_and_take_over_from_each_other(shop):
    sent = {}
    with shop.consumer("first") as first:
        for number in range(100, 140):
            sent[number] = 10.0
            shop.sends(NOW, order(number, number, NOW))
        shop.consumes(first)
        with shop.consumer("second") as second:
            for number in range(140, 170):
                sent[number] = 10.0
                shop.sends(NOW, order(number, number, NOW))
                first.step()
                second.step()
            shop.consumes(first, second)
        for number in range(200, 220):
            sent[number] = 10.0
            shop.sends(NOW, order(number, number, NOW))
        shop.consumes(first)
    assert shop.amounts() == sent | {1: 5.0}
    assert len(shop.raw()) == len(sent) + 1


def test_a_batch_that_fails_is_tried_again_and_set_aside_after_many_tries(
    shop, monkeypatch
):
    monkeypatch.setattr(consumer_module, "MAX_DELIVERIES", 3)
    with shop.consumer() as consumer:
        shop.sends(NOW, SECOND)
        while not consumer.stream.read():
            consumer.stream.wait(0.5)
        with monkeypatch.context() as patch:
            patch.setitem(ORDERS.views, VIEW, lambda rows: rows.select("no_column"))
            assert not consumer.step()
            assert shop.lag().entries == 1
            assert not consumer.step()
            assert consumer.step()
    assert shop.amounts() == {1: 5.0}
    (row,) = shop.quarantine()
    assert "no_column" in row["rules"]
    assert shop.lag() == (0, None)


def test_serving_stores_all_events_of_a_request_or_says_that_kafka_does_not_answer(
    shop,
):
    with shop.consumer() as consumer:
        schema = consumer.schema
        rows = [
            row | {"order_ts": row["order_ts"].isoformat()}
            for row in (SECOND, order(3, 1, NOW, 3.0), order(4, 2, NOW, 4.0))
        ]

        async def put(settings, *requests):
            with closing_later(broker(settings).intake()) as intake:
                for request in requests:
                    await intake.put("orders", intake.records(schema, request))

        asyncio.run(put(shop.settings, rows[:1], rows[1:]))
        shop.consumes(consumer)
        away = shop.settings.model_copy(update={"events_url": "kafka://127.0.0.1:1"})

        def is_refused(request):
            with pytest.raises(BrokerUnavailableError, match="Kafka: "):
                asyncio.run(put(away, request))

        with ThreadPoolExecutor() as threads:  # each waits for seconds
            list(threads.map(is_refused, (rows[:1], rows[1:])))
    assert shop.amounts() == {1: 5.0, 2: 2.0, 3: 3.0, 4: 4.0}


def test_of_events_with_one_key_in_a_request_the_last_counts_whoever_it_is_about(shop):
    with shop.consumer() as consumer:
        rows = [
            order(2, customer, NOW, float(customer)) for customer in (3, 4, 9, 7, 6)
        ]
        (record,) = broker(shop.settings).intake().records(consumer.schema, rows)
    assert json.loads(record.events)[0]["customer_id"] == 6


def test_a_look_at_what_waits_takes_nothing_away_and_needs_no_topic(shop):
    with shop.consumer() as consumer:
        shop.sends(NOW, SECOND, order(3, 1, NOW))
        for _ in range(2):
            assert len([*waiting(shop.settings, "orders")]) == 2
            assert shop.lag().entries == 2
        other = consumer.schema.model_copy(update={"topic": "nowhere"})
        assert broker(shop.settings).lag(other) == (0, None)
        prefixed = shop.settings.model_copy(update={"events_prefix": "staging."})
        assert broker(prefixed).lag(consumer.schema) == (0, None)
        shop.consumes(consumer)
    assert shop.amounts() == {1: 5.0, 2: 2.0, 3: 10.0}


def test_records_that_fit_into_no_memory_or_no_dead_letter_hold_up_no_other(
    shop, monkeypatch
):
    """One is too large for the topic of dead letters; hundreds are as unreadable as it."""
    monkeypatch.setattr(kafka, "LARGEST_RECORD", 1_000)
    with shop.consumer() as consumer:
        shop.sends_text(NOW, 1, "x" * 900_000)
        for number in range(300):
            shop.sends_text(NOW, 1, f"no JSON {number}")
        shop.sends(NOW, SECOND)
        start = time.monotonic()
        shop.consumes(consumer)
        seconds = time.monotonic() - start
    assert shop.amounts() == {1: 5.0, 2: 2.0}
    assert len(shop.quarantine()) == 301
    assert seconds < at_most(20)


def test_entries_that_wait_for_a_mended_batch_are_so_many_and_no_more(
    shop, monkeypatch
):
    monkeypatch.setattr(kafka_broker, "READ_COUNT", 5)
    orders = [order(number, 1, NOW) for number in range(10, 40)]
    with shop.consumer() as consumer:
        shop.sends(NOW, *orders)
        while len(consumer.stream.read()) < 5:
            consumer.stream.wait(0.2)
        for _ in range(5):
            consumer.stream.wait(0.1)
        assert len(consumer.stream.read()) == 5
        shop.consumes(consumer)
    assert len(shop.amounts()) == 31


class closing_later(closing):  # noqa: N801  (as `closing`)
    """Close something whose `close` is awaited."""

    def __exit__(self, *_):
        asyncio.get_running_loop().create_task(self.thing.close())

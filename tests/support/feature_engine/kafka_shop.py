"""A shop whose orders arrive by Kafka, at times of today: a record is not from the future."""

import json
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from core.connectors.kafka import client_settings
from core.errors import BrokerUnavailableError
from feature_engine.events.broker import consumer_lags, show_life
from feature_engine.events.kafka_broker import DEAD_LETTERS
from feature_engine.ingest.consumer import EventConsumer
from feature_repo.online_store import redis_client
from tests.support.feature_engine.shop import DAY, ORDERS, Shop, order

TOPIC = "gyre.events.orders"
NOW = datetime.now(UTC).replace(microsecond=0)
FIRST = order(1, 1, NOW - 10 * DAY, 5.0)


class KafkaShop(Shop):
    """A shop whose installation reads a topic."""

    def __init__(self, settings, file, brokers, client=None):
        """Make a shop.

        Args:
            settings: Of the installation.
            file: Of its source.
            brokers: Hosts and ports.
            client: Further settings of every client, such as a login.

        """
        super().__init__(settings, file)
        named = {
            name.replace(".", "_"): value for name, value in (client or {}).items()
        }
        named.pop("bootstrap_servers", None)
        update = {"events_url": f"kafka://{brokers}", "kafka": named}
        self.settings = self.settings.model_copy(update=update)
        # The mock cluster makes a topic that is asked for, and no other.
        admin = AdminClient(client_settings(self.settings))
        for topic in (TOPIC, TOPIC + DEAD_LETTERS):
            admin.list_topics(topic, timeout=30)
        self.producer = Producer(client_settings(self.settings, acks="all"))

    @contextmanager
    def consumer(self, name="test"):
        """Give a consumer that has declared itself, in this process."""
        consumer = EventConsumer(self.settings, ORDERS, name)
        with closing(consumer.stream), redis_client(self.settings) as redis:
            show_life(redis, [consumer.schema])
            consumer.stream.declare()
            yield consumer

    def sends(self, received, *rows):
        """Put a record for each order on the topic, at a time of the test's own."""
        for row in rows:
            text = json.dumps([row], default=lambda at: at.isoformat())
            self.sends_text(received, row["customer_id"], text)

    def sends_text(self, received, customer, text):
        milliseconds = int(received.timestamp() * 1000)
        self.producer.produce(TOPIC, text, str(customer), timestamp=milliseconds)
        assert self.producer.flush(60) == 0

    def lag(self, seconds=60):
        """Return the lag; a broker that has just started may have no coordinator of groups yet."""
        end = time.monotonic() + seconds
        while True:
            try:
                return consumer_lags(self.settings)["orders"]
            except BrokerUnavailableError as exc:
                if "coordinator" not in f"{exc}" or time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def consumes(self, *consumers, seconds=60):
        """Have consumers process everything that waits."""
        end = time.monotonic() + seconds
        while self.lag().entries:
            assert time.monotonic() < end, self.lag()
            for consumer in consumers:
                if not consumer.step():
                    consumer.stream.wait(0.2)

    def spent(self, customer):
        (values,) = self.online(datetime.now(UTC), customer)
        return values and values["lifetime_value"]

    def amounts(self):
        """Return the amount of each order that has landed, by its number."""
        rows = self.raw()
        amounts = {row["order_id"]: row["dollar_value"] for row in rows}
        assert len(amounts) == len(rows)
        return amounts

    def dead_letters(self, topic, count):
        """Return the first records of a topic of dead letters, each with its headers."""
        group = {"group.id": "test", "auto.offset.reset": "earliest"}
        with closing(Consumer(client_settings(self.settings) | group)) as consumer:
            consumer.subscribe([topic])
            records = []
            while len(records) < count:
                records += consumer.consume(count, 1.0)
        return [(record.value(), dict(record.headers())) for record in records]

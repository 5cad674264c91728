"""What tests of Kafka rest on: brokers that die, a disk that is full, logins, a schema registry."""

from signal import SIGKILL

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import ConfigResource
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.conftest import wait_until
from tests.support.stores.kafka import kafka_servers
from tests.support.stores.registry import registry_server
from tests.support.tools.small_disk import fill, small_disk

pytestmark = pytest.mark.kafka
SCHEMA = """
{"type": "record", "name": "order", "fields": [
  {"name": "customer", "type": "string"}, {"name": "amount", "type": "double"}]}
"""


class Orders:
    """A producer of a topic, and what its broker said of each message."""

    def __init__(self, kafka, **settings):
        self.producer = Producer(kafka.settings | {"acks": "all"} | settings)
        self.acknowledged = []
        self.errors = []

    def send(self, values, **more):
        for value in values:
            text = str(value)
            self.producer.produce("orders", text, on_delivery=self._delivered, **more)
            self.producer.poll(0)

    def flush(self):
        assert self.producer.flush(120) == 0

    def _delivered(self, error, message):
        if error is None:
            self.acknowledged.append(int(message.value()))
        else:
            self.errors.append(error.code())


def orders(kafka, count):
    """Return the values of a topic, which are `count` or more, by a new group."""
    group = {"group.id": "reader", "auto.offset.reset": "earliest"}
    consumer = Consumer(kafka.settings | group)
    consumer.subscribe(["orders"])
    values = []

    def read():
        messages = consumer.consume(1000, timeout=1)
        values.extend(message.value() for message in messages if not message.error())
        return len(values) >= count

    wait_until(f"{count} messages", read, seconds=120)
    read()
    consumer.close()
    return values


def numbers(kafka, count):
    return sorted(int(value) for value in orders(kafka, count))


def test_a_killed_broker_loses_no_message_and_has_none_twice(tmp_path):
    with kafka_servers(tmp_path) as kafka:
        kafka.create_topic("orders", partitions=4)
        sent = Orders(kafka, **{"enable.idempotence": True})
        sent.send(range(500))
        wait_until("the first", lambda: sent.producer.poll(0.1) or sent.acknowledged)
        kafka.kill(1)
        assert kafka.processes[1].returncode == -SIGKILL
        sent.send(range(500, 1000))
        kafka.restart(1)
        sent.flush()
        assert sorted(sent.acknowledged) == [*range(1000)]
        assert numbers(kafka, 1000) == [*range(1000)]


def test_three_brokers_go_on_without_the_leader(tmp_path):
    with kafka_servers(tmp_path, brokers=3) as kafka:
        kafka.create_topic("orders")
        topic = ConfigResource("topic", "orders")
        (config,) = kafka.admin.describe_configs([topic]).values()
        assert config.result()["min.insync.replicas"].value == "2"
        sent = Orders(kafka)
        sent.send(range(100))
        sent.flush()
        first = kafka.leader("orders")
        kafka.kill(first)
        sent.send(range(100, 200))
        sent.flush()
        assert sorted(sent.acknowledged) == [*range(200)]
        assert kafka.processes[first].poll() is not None
        second = kafka.leader("orders")
        assert second not in {first, -1}

        kafka.restart(first)
        wait_until("all replicas", lambda: kafka.is_replicated("orders"))
        kafka.elect_leader("orders")
        wait_until("the first leader", lambda: kafka.leader("orders") == first)
        third = kafka.move_leader("orders")
        assert third != first
        assert numbers(kafka, 200) == [*range(200)]


def test_a_full_disk_is_an_error_until_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with (
        small_disk(disk, megabytes=64),
        kafka_servers(tmp_path, data=disk) as kafka,
    ):
        kafka.create_topic("orders")
        sent = Orders(kafka, **{"delivery.timeout.ms": 10_000, "linger.ms": 0})
        sent.send(range(10))
        sent.flush()
        file = fill(disk)
        # A file has room for a few small ones in its last block.
        sent.send(range(10, 20), headers={"filler": bytes(10_000)})
        sent.flush()
        assert len(sent.errors) == 10
        # A broker with no other disk ends by itself.
        assert kafka.processes[1].wait(60) == 1
        file.unlink()
        kafka.restart(1)
        again = Orders(kafka)
        again.send(range(1000, 1010))
        again.flush()
        kept = numbers(kafka, len(sent.acknowledged) + 10)
        assert kept == sorted(sent.acknowledged + again.acknowledged)


def test_a_client_needs_the_password_and_the_authority(tmp_path):
    with kafka_servers(tmp_path, secured=True) as kafka:
        kafka.create_topic("orders")
        sent = Orders(kafka)
        sent.send([1])
        sent.flush()
        assert numbers(kafka, 1) == [1]
        wrong = {
            "sasl.password": ("wrong", KafkaError._AUTHENTICATION),
            "ssl.ca.location": ("/etc/ssl/certs/ca-certificates.crt", KafkaError._SSL),
        }
        for name, (value, code) in wrong.items():
            errors = []
            client = Producer(
                kafka.settings
                | {name: value, "log_level": 0, "error_cb": errors.append}
            )
            with pytest.raises(KafkaException):
                client.list_topics(timeout=5)
            client.poll(1)
            assert code in {error.code() for error in errors}


def test_a_message_is_read_by_the_schema_of_the_registry(tmp_path):
    order = {"customer": "C1", "amount": 12.5}
    with (
        kafka_servers(tmp_path) as kafka,
        registry_server(tmp_path / "registry.log") as address,
        SchemaRegistryClient({"url": address}) as registry,
        SchemaRegistryClient({"url": address}) as other_client,
    ):
        kafka.create_topic("orders")
        place = SerializationContext("orders", MessageField.VALUE)
        message = AvroSerializer(registry, SCHEMA)(order, place)
        assert registry.get_subjects() == ["orders-value"]
        version = registry.get_latest_version("orders-value")
        assert message[:5] == b"\0" + version.schema_id.to_bytes(4, "big")
        producer = Producer(kafka.settings)
        producer.produce("orders", message)
        assert producer.flush(60) == 0
        (value,) = orders(kafka, 1)
        assert AvroDeserializer(other_client)(value, place) == order

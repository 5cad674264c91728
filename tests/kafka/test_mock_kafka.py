"""What librdkafka's mock cluster can stand for, and what not: as `mock_kafka` says."""

import pytest
from confluent_kafka import (
    OFFSET_STORED,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from tests.conftest import wait_until
from tests.support.stores.kafka import mock_kafka

PLACE = TopicPartition("orders", 0)
NOTE = "state é" * 1000
"""Longer than a real broker takes."""


@pytest.fixture
def address():
    with mock_kafka(brokers=3) as address:
        yield address


@pytest.fixture
def producer(address):
    return Producer({"bootstrap.servers": address, "log_level": 0})


@pytest.fixture
def admin(address):
    return AdminClient({"bootstrap.servers": address, "log_level": 0})


def consumer(address, group="readers", **more):
    settings = {
        "bootstrap.servers": address,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "log_level": 0,
    }
    return Consumer(settings | more)


def read(reader, count):
    messages = []

    def are_there():
        messages.extend(reader.consume(count - len(messages), timeout=0.5))
        return len(messages) == count

    wait_until(f"{count} messages", are_there, seconds=60)
    return messages


def send(producer, *values, topic="orders"):
    for value in values:
        producer.produce(
            topic,
            value,
            key="C1",
            partition=0,
            timestamp=1000,
            headers={"kind": b"new"},
        )
    assert producer.flush(30) == 0


def test_a_group_reads_commits_with_metadata_and_goes_on_from_there(
    address, producer, admin
):
    send(producer, "first", None)
    reader = consumer(address)
    reader.subscribe(["orders"])
    first, removed = read(reader, 2)
    assert (first.key(), first.value(), removed.value()) == (b"C1", b"first", None)
    assert (first.timestamp()[1], first.headers()) == (1000, [("kind", b"new")])
    reader.commit(offsets=[TopicPartition("orders", 0, 1, NOTE)], asynchronous=False)
    reader.close()

    reader = consumer(address)
    (kept,) = reader.committed([PLACE], timeout=30)
    assert (kept.offset, kept.metadata) == (1, NOTE)
    asked = ConsumerGroupTopicPartitions("readers", [PLACE])
    (answer,) = admin.list_consumer_group_offsets([asked]).values()
    (kept,) = answer.result().topic_partitions
    assert (kept.offset, kept.metadata) == (1, NOTE)
    assert reader.get_watermark_offsets(PLACE, timeout=30) == (0, 2)
    # A group's join would wait for the session of the member that has closed.
    reader.assign([TopicPartition("orders", 0, OFFSET_STORED)])
    assert [message.offset() for message in read(reader, 1)] == [1]
    reader.close()


def test_a_consumer_without_a_group_commits_too(address, producer):
    send(producer, "first")
    reader = consumer(address)
    reader.assign([TopicPartition("orders", 0, 0)])
    reader.commit(offsets=[TopicPartition("orders", 0, 1, "note")], asynchronous=False)
    reader.close()
    (kept,) = consumer(address).committed([PLACE], timeout=30)
    assert (kept.offset, kept.metadata) == (1, "note")


def test_an_unknown_topic_is_created_by_an_admin_and_not_by_a_consumer(address, admin):
    reader = consumer(address)
    unknown = reader.list_topics("unknown", timeout=30).topics["unknown"]
    assert unknown.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    assert admin.list_topics(timeout=30).topics == {}
    assert (
        len(admin.list_topics("unknown", timeout=30).topics["unknown"].partitions) == 4
    )
    assert reader.list_topics("unknown", timeout=30).topics["unknown"].error is None
    reader.close()


def test_what_the_mock_does_otherwise_than_a_broker(address, producer, admin):
    """A test of these needs a real one; where this fails, the mock has learnt it."""
    send(producer, "first")
    writer = Producer({"bootstrap.servers": address, "transactional.id": "writer"})
    writer.init_transactions(30)
    writer.begin_transaction()
    send(writer, "aborted")
    writer.abort_transaction(30)
    reader = consumer(address, **{"isolation.level": "read_committed"})
    reader.assign([TopicPartition("orders", 0, 0)])
    values = [message.value() for message in read(reader, 2)]
    assert values == [b"first", b"aborted"]
    (found,) = reader.offsets_for_times([TopicPartition("orders", 0, 0)], timeout=30)
    assert found.offset == -1
    reader.close()
    (groups,) = admin.describe_consumer_groups(["readers"]).values()
    with pytest.raises(KafkaException) as refused:
        groups.result()
    assert refused.value.args[0].code() == KafkaError._UNSUPPORTED_FEATURE

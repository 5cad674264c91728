"""Clients of a team's Kafka (GYRE_EVENTS_URL), by librdkafka: one place for their settings.

Without librdkafka's client the import of this module raises a SettingsError.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any
from zlib import crc32

from core.errors import BrokerUnavailableError, SettingsError
from core.packages import missing_client
from core.settings import Settings

try:
    from confluent_kafka import (
        TIMESTAMP_NOT_AVAILABLE,
        Consumer,
        KafkaError,
        KafkaException,
        Message,
        Producer,
        TopicPartition,
    )
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic
except ModuleNotFoundError as exc:
    raise SettingsError(f"GYRE_EVENTS_URL {missing_client(exc)}") from exc

SECONDS = 5.0
"""How long a broker may take for one call."""
DELIVERY_MILLISECONDS = 3_000
"""How long the brokers may take for a record: a leader that dies is replaced in that time."""
PARTITIONS = 6
"""Partitions of a topic that Gyre makes: as many consumers can share its records."""
READER = "reader"
"""Name of the group that commits no offset, behind GYRE_EVENTS_PREFIX."""
READ_COUNT = 1_000
"""Records that one call reads."""
LARGEST_RECORD = 10_000_000
"""Bytes of a record that a client sends; a broker may take less."""
NOTHING = 0
"""Level of librdkafka's own lines on stderr, of which there are many while a broker is away."""
SILENT_SECONDS = 60.0
END = "_PARTITION_EOF"
"""Error in place of a record behind the last one of a partition."""
logger = logging.getLogger(__name__)


class ErrorLog:
    """Logs the errors of a client: one a minute, as each try to connect is one."""

    def __init__(self) -> None:
        self._silent_until = 0.0

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            logger.warning("Kafka: %s", error.str())
            self._silent_until = now + SILENT_SECONDS


def place_of(message: Message) -> tuple[int, int]:
    """Return partition and offset of a record that a broker has."""
    return int(message.partition() or 0), int(message.offset() or 0)


def sent_at(message: Message) -> int:
    """Return the time of a record, in milliseconds since 1970; now if it has none, or a later one."""
    now = int(time.time() * 1000)
    kind, sent = message.timestamp()
    return now if kind == TIMESTAMP_NOT_AVAILABLE else min(sent, now)


def client_settings(settings: Settings, **more: Any) -> dict[str, Any]:
    """Return the settings of a client: `more`, then those of GYRE_KAFKA, which win.

    Args:
        settings: Settings of the installation.
        more: Settings of librdkafka, with `_` for each dot of a name.

    """
    brokers = str(settings.events_url).removeprefix("kafka://")
    options = {"bootstrap_servers": brokers} | more | settings.kafka
    client = {name.replace("_", "."): value for name, value in options.items()}
    # Without the callback a call raises an error that belongs to no record.
    return client | {"log_level": NOTHING, "error_cb": ErrorLog()}


@contextmanager
def kafka_errors(what: str = "") -> Iterator[None]:
    """Translate an error of Kafka into a BrokerUnavailableError; `what` names the thing, as a topic."""
    try:
        yield
    except (KafkaException, BufferError) as exc:
        error = exc.args[0] if exc.args else exc
        text = error.str() if isinstance(error, KafkaError) else str(error)
        head = f"Kafka: {what}: " if what else "Kafka: "
        raise BrokerUnavailableError(head + text) from exc


def broker_count(settings: Settings) -> int:
    """Return the number of brokers that answer.

    Raises:
        BrokerUnavailableError: None does, or they refuse the login.

    """
    with kafka_errors():
        client = AdminClient(client_settings(settings))
        return len(client.list_topics(timeout=SECONDS).brokers)


def producer(settings: Settings, **more: Any) -> Producer:
    """Return a producer whose records are delivered once every replica in sync has them."""
    options = {
        "acks": "all",
        "enable_idempotence": True,
        "message_timeout_ms": DELIVERY_MILLISECONDS,
        "message_max_bytes": LARGEST_RECORD,
    }
    return Producer(client_settings(settings, **options | more))


def make_topic(
    settings: Settings, topic: str, record_time: str = "LogAppendTime"
) -> bool:
    """Make a topic that is not there; return whether it was made.

    Args:
        settings: Settings of the installation.
        topic: Name of the topic.
        record_time: The time that a record carries: that of the broker, or CreateTime, the sender's.

    """
    admin = AdminClient(client_settings(settings))
    if topic in admin.list_topics(timeout=SECONDS).topics:
        return False
    config = {"message.timestamp.type": record_time}
    new_topic = NewTopic(topic, PARTITIONS, config=config)
    results = admin.create_topics([new_topic], request_timeout=SECONDS)
    try:
        results[topic].result()
    except KafkaException as exc:  # another process may have made it meanwhile
        if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    return True


def partitions_of(client: Consumer | Producer, topic: str) -> list[int]:
    """Return the numbers of a topic's partitions.

    Raises:
        KafkaException: There is no such topic, or Kafka does not answer.

    """
    metadata = client.list_topics(topic, timeout=SECONDS).topics[topic]
    if metadata.error:
        raise KafkaException(metadata.error)
    return sorted(metadata.partitions)


class TopicWriter:
    """Writes records to a topic. Records of one group stay in order, as they share a partition.

    A record waits for Kafka as long as that takes: one that times out would change the order.

    Raises:
        KafkaException: Kafka does not answer, or refuses the topic.

    """

    def __init__(self, settings: Settings, topic: str) -> None:
        make_topic(settings, topic, record_time="CreateTime")
        self._topic = topic
        self._producer = producer(settings, message_timeout_ms=0)
        self._partition_count = len(partitions_of(self._producer, topic))
        self._errors: list[KafkaError] = []

    def write(self, key: str, content: bytes, *, group: str, time: datetime) -> None:
        """Hand over a record without waiting for Kafka.

        Args:
            key: Key of the record.
            content: Value of the record.
            group: Text that gives the partition: its CRC-32 modulo their number.
            time: The time that the record carries.

        Raises:
            KafkaException: The record is too large.

        """
        self._producer.produce(
            self._topic,
            content,
            key,
            partition=crc32(group.encode()) % self._partition_count,
            timestamp=int(time.timestamp() * 1000),
            on_delivery=self._note,
        )

    def is_flushed(self, seconds: float) -> bool:
        """Wait until Kafka has every record. Returns False if it has not yet after `seconds`.

        Raises:
            KafkaException: Kafka refuses a record.

        """
        waiting_count = self._producer.flush(seconds)
        if self._errors:
            raise KafkaException(self._errors[0])
        return not waiting_count

    def _note(self, error: KafkaError | None, _message: Message) -> None:
        if error:
            self._errors.append(error)


def offsets_since(
    settings: Settings, topic: str, since: datetime | None
) -> tuple[list[TopicPartition], dict[int, int]]:
    """Return the partitions of a topic, each with its first offset from a time on, and their ends.

    Args:
        settings: Settings of the installation.
        topic: Name of the topic.
        since: A time, as the topic has the times of its records; None: from its first record on.

    """
    ends = {}
    with closing(reader(settings)) as consumer:
        moment = int(since.timestamp() * 1000) if since else 0
        starts = [
            TopicPartition(topic, number, moment)
            for number in partitions_of(consumer, topic)
        ]
        if since:
            starts = consumer.offsets_for_times(starts, timeout=SECONDS)
        for start in starts:
            if start.error:
                raise KafkaException(start.error)
            first, end = consumer.get_watermark_offsets(start, timeout=SECONDS)
            ends[start.partition] = end
            start.offset = max(start.offset, first) if start.offset >= 0 else end
    return starts, ends


def reader(settings: Settings) -> Consumer:
    """Return a consumer that joins no group and commits nothing."""
    return Consumer(
        client_settings(
            settings,
            group_id=settings.events_prefix + READER,
            enable_auto_commit=False,
            enable_partition_eof=True,
            # Not half a second for each partition at whose end only a transaction's mark is.
            fetch_wait_max_ms=10,
            # Records may expire meanwhile.
            auto_offset_reset="earliest",
        )
    )


def first_records(
    settings: Settings, starts: Sequence[TopicPartition]
) -> dict[int, Message]:
    """Return the first record of each partition from an offset on; of one that has none, its end.

    Raises:
        KafkaException: Kafka does not answer.

    """
    messages: dict[int, Message] = {}
    with closing(reader(settings)) as consumer:
        consumer.assign([*starts])
        while len(messages) < len(starts):
            message = consumer.poll(SECONDS)
            if message is None:
                raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT))
            error = message.error()
            if error and error.name() != END:
                raise KafkaException(error)
            partition, _ = place_of(message)
            messages.setdefault(partition, message)
    return messages


def records_between(
    settings: Settings, starts: Sequence[TopicPartition], ends: Mapping[int, int]
) -> Iterator[Message]:
    """Yield the records of a topic from one offset to another, partition by partition.

    Args:
        settings: Settings of the installation.
        starts: Partitions, each with its first offset.
        ends: Partition → the offset that is read no more.

    Raises:
        KafkaException: Kafka does not answer.

    """
    with closing(reader(settings)) as consumer:
        for start in starts:
            consumer.assign([start])
            is_read = start.offset >= ends[start.partition]
            while not is_read:
                messages = consumer.consume(READ_COUNT, timeout=1.0)
                if not messages:
                    partitions_of(consumer, start.topic)  # does Kafka answer?
                for message in messages:
                    error = message.error()
                    if error and error.name() == END:
                        is_read = True
                    elif error:
                        raise KafkaException(error)
                    elif place_of(message)[1] < ends[start.partition]:
                        yield message
                    else:
                        is_read = True

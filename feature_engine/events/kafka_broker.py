"""A team's Kafka as the broker of events.

`gyre.events.DATASET` is a topic, a record the events of an entity in one request, by the key of the
entity: a JSON list of rows. A dataset may name a topic that others write. Consumers share the
partitions as the group `gyre.DATASET`; they commit an offset once the table has the rows before it.
A record that cannot be read is copied to the topic `TOPIC.gyre-dead-letters`.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from pydantic_core import to_json

from core.connectors.kafka import (
    READ_COUNT,
    SECONDS,
    client_settings,
    kafka_errors,
    make_topic,
    partitions_of,
    place_of,
    producer,
    records_between,
)
from core.errors import BrokerUnavailableError
from core.settings import Settings
from core.timestamps import BEGINNING
from feature_engine.events.interface import ConsumerLag, Entry, Record, Row
from feature_repo.event_schema import EventSchema

PREFIX = "gyre.events."
DEAD_LETTERS = ".gyre-dead-letters"
DEAD_MILLISECONDS = 6_000
"""Time without a sign of life after which others read the partitions of a consumer."""
DENIED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
)
"""Errors of a client that may not make a topic, or not write to it."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KafkaEntry(Entry):
    """A record of a topic."""

    topic: str
    partition: int
    offset: int

    @property
    def place(self) -> dict[str, Any]:
        return {"topic": self.topic, "partition": self.partition, "offset": self.offset}


class KafkaBroker:
    """The Kafka of an installation: see `interface.Broker`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def intake(self) -> "KafkaIntake":
        return KafkaIntake(self._settings)

    def stream(self, schema: EventSchema, consumer: str) -> "KafkaStream":
        return KafkaStream(self._settings, schema, consumer)

    def lag(self, schema: EventSchema) -> ConsumerLag:
        with kafka_errors():
            count = 0
            arrivals = []
            for start, end in self._uncommitted(schema):
                ends = {start.partition: end}
                records = records_between(self._settings, [start], ends, at_once=1)
                for record in records:
                    count += end - start.offset
                    arrivals.append(_time(record.timestamp()[1]))
                    break
        return ConsumerLag(count, min(arrivals, default=None))

    def waiting(self, schema: EventSchema) -> Iterator[bytes]:
        with kafka_errors():
            for start, end in self._uncommitted(schema):
                records = records_between(
                    self._settings, [start], {start.partition: end}
                )
                for record in records:
                    yield record.value() or b""

    def _uncommitted(self, schema: EventSchema) -> list[tuple[TopicPartition, int]]:
        """Return the partitions with records that no consumer has committed, and their ends."""
        waiting = []
        group = client_settings(self._settings, group_id=_group(schema))
        with closing(Consumer(group)) as consumer:
            topic = _topic(schema)
            partitions = [
                TopicPartition(topic, number)
                for number in partitions_of(consumer, topic)
            ]
            for committed in consumer.committed(partitions, timeout=SECONDS):
                first, end = consumer.get_watermark_offsets(committed, timeout=SECONDS)
                committed.offset = max(committed.offset, first)
                if committed.offset < end:
                    waiting.append((committed, end))
        return waiting


class KafkaIntake:
    """Serving's side: see `interface.Intake`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_closed = threading.Event()
        self._transactions = ThreadPoolExecutor(1)
        """Runs one transaction after the other, as a producer has one at a time."""
        self._transactional_id = f"gyre.{uuid4()}"
        self._transactional: Producer | None = None

    def records(self, schema: EventSchema, events: Sequence[Row]) -> list[Record]:
        """Return a record for each entity."""
        events_by_key: dict[bytes, list[Row]] = {}
        for event in events:
            key = to_json(event[schema.entity])
            events_by_key.setdefault(key, []).append(event)
        return [Record(key, to_json(rows)) for key, rows in events_by_key.items()]

    async def put(self, dataset: str, records: Sequence[Record]) -> str:
        topic = PREFIX + dataset
        loop = asyncio.get_running_loop()
        with kafka_errors():
            if len(records) == 1:
                delivered: asyncio.Future[Message] = loop.create_future()
                report = partial(_report, loop, delivered)
                record = records[0]
                self._producer.produce(
                    topic, record.events, record.key, on_delivery=report
                )
                message = await delivered
            else:
                put_all = partial(self._put_all, topic, records)
                transaction = loop.run_in_executor(self._transactions, put_all)
                try:
                    message = await asyncio.wait_for(transaction, SECONDS)
                except TimeoutError as exc:
                    raise BrokerUnavailableError("Kafka: no answer in time") from exc
        partition, offset = place_of(message)
        return f"{topic}/{partition}/{offset}"

    @cached_property
    def _producer(self) -> Producer:
        """The producer of single records; a thread has it report what is delivered."""
        client = producer(self._settings)

        def report() -> None:
            while not self._is_closed.is_set():
                client.poll(0.1)

        threading.Thread(target=report, daemon=True).start()
        return client

    def _put_all(self, topic: str, records: Sequence[Record]) -> Message:
        """Put records in one transaction; return the last one."""
        messages: list[Message] = []
        client = self._transactional or producer(
            self._settings,
            transactional_id=self._transactional_id,
            transaction_timeout_ms=DEAD_MILLISECONDS,
        )
        if self._transactional is None:
            client.init_transactions(SECONDS)
        # After an error it is made anew: that ends the transaction of this id.
        self._transactional = None
        client.begin_transaction()
        for record in records:
            client.produce(
                topic,
                record.events,
                record.key,
                on_delivery=lambda _, message: messages.append(message),
            )
        client.commit_transaction(SECONDS)
        self._transactional = client
        return messages[-1]

    async def close(self) -> None:
        self._is_closed.set()
        self._transactions.shutdown(wait=False, cancel_futures=True)


def _report(
    loop: asyncio.AbstractEventLoop,
    delivered: "asyncio.Future[Message]",
    error: KafkaError | None,
    message: Message,
) -> None:
    """Have the event loop end the wait for a record; called by another thread."""

    def end() -> None:
        if delivered.done():  # the request was cancelled
            return
        if error:
            delivered.set_exception(KafkaException(error))
        else:
            delivered.set_result(message)

    loop.call_soon_threadsafe(end)


class KafkaStream:
    """The consumer's side: see `interface.Stream`. Errors of Kafka are raised as they are.

    Arrival is the time that a record carries, but not before the arrival of a record before it in
    its partition: clocks of senders differ. The newest arrival is committed beside the offset.
    """

    def __init__(self, settings: Settings, schema: EventSchema, consumer: str) -> None:
        self._settings = settings
        self._schema = schema
        self._topic = _topic(schema)
        self._messages: list[Message] = []
        """Records that Kafka delivered, and that are no entries yet."""
        self._entries: list[KafkaEntry] = []
        self._newest: dict[int, int] = {}
        """Partition → arrival of its newest record, in milliseconds."""
        self._deliveries = 0
        self._is_declared = False
        client = client_settings(
            settings,
            client_id=consumer,
            group_id=_group(schema),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=DEAD_MILLISECONDS,
        )
        self._consumer = Consumer(client | {"error_cb": _log})

    def declare(self) -> None:
        """Make Gyre's own topic, and join the group."""
        if self._is_declared:
            return
        if not self._schema.topic:
            make_topic(self._settings, self._topic)
        self._consumer.subscribe(
            [self._topic], on_revoke=self._leave, on_lost=self._leave
        )
        self._is_declared = True

    def _leave(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Forget the records of partitions that another consumer reads from now on."""
        left = {partition.partition for partition in partitions}
        for partition in left:
            self._newest.pop(partition, None)
        self._messages = [
            message for message in self._messages if place_of(message)[0] not in left
        ]
        self._entries = [
            entry for entry in self._entries if entry.partition not in left
        ]

    def wait(self, seconds: float) -> None:
        if len(self._entries) >= READ_COUNT:
            time.sleep(seconds)
            seconds = 0.0
        self._fetch(1, seconds)

    def read(self) -> list[KafkaEntry]:
        # At least one: else the broker would not hear of this consumer.
        self._fetch(max(READ_COUNT - len(self._entries), 1), 0.0)
        if self._entries:
            self._deliveries += 1
        return [*self._entries]

    def _fetch(self, count: int, seconds: float) -> None:
        errors = []
        for message in self._consumer.consume(count, seconds):
            if message.error():
                errors.append(message.error())
            else:
                self._messages.append(message)
        # One after the other: a message leaves the list once it is an entry.
        while self._messages:
            self._entries.append(self._entry(self._messages[0]))
            del self._messages[0]
        if errors:
            raise KafkaException(errors[0])

    def _entry(self, message: Message) -> KafkaEntry:
        partition, offset = place_of(message)
        now = int(time.time() * 1000)
        kind, sent = message.timestamp()
        if kind == TIMESTAMP_NOT_AVAILABLE:
            sent = now
        arrival = max(self._newest_arrival(partition), min(sent, now))
        self._newest[partition] = arrival
        return KafkaEntry(
            id=f"{self._topic}/{partition}/{offset}",
            events=message.value() or b"",
            arrival=_time(arrival),
            topic=self._topic,
            partition=partition,
            offset=offset,
            key=message.key(),
        )

    def _newest_arrival(self, partition: int) -> int:
        """Return the arrival of the newest record that this consumer, or one before it, has read."""
        if partition not in self._newest:
            place = TopicPartition(self._topic, partition)
            (committed,) = self._consumer.committed([place], timeout=SECONDS)
            text = committed.metadata or ""
            self._newest[partition] = int(text) if text.isdigit() else 0
        return self._newest[partition]

    def deliveries(self, entry: Entry) -> int:  # noqa: ARG002  (Kafka counts none)
        return self._deliveries

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        done = {entry.id for entry in entries}
        offsets = {}
        for entry in self._entries:
            if entry.id in done:
                arrival = (entry.arrival - BEGINNING) // timedelta(milliseconds=1)
                offsets[entry.partition] = TopicPartition(
                    self._topic, entry.partition, entry.offset + 1, str(arrival)
                )
        self._consumer.commit(offsets=[*offsets.values()], asynchronous=False)
        self._entries = [entry for entry in self._entries if entry.id not in done]
        self._deliveries = 0

    def reject(self, entry: Entry, reason: str) -> None:
        """Copy a record, with its place and the reason as headers, if Kafka allows that."""
        try:
            self._copy(entry, {"reason": reason, "place": json.dumps(entry.place)})
        except KafkaException as exc:
            error = exc.args[0]
            if error.code() not in DENIED:
                raise
            topic = self._topic + DEAD_LETTERS
            logger.warning("%s: quarantine alone has a record: %s", topic, error)

    def _copy(self, entry: Entry, headers: dict[str, str | bytes | None]) -> None:
        """Copy a record to the topic of dead letters."""
        errors: list[KafkaError] = []
        self._dead_letters.produce(
            self._topic + DEAD_LETTERS,
            entry.events,
            entry.key,
            headers=headers,
            on_delivery=lambda error, _: errors.append(error) if error else None,
        )
        self._dead_letters.flush()
        if errors:
            raise KafkaException(errors[0])

    @cached_property
    def _dead_letters(self) -> Producer:
        make_topic(self._settings, self._topic + DEAD_LETTERS)
        return producer(self._settings)

    def close(self) -> None:
        self._consumer.close()


def _log(error: KafkaError) -> None:
    logger.warning("Kafka: %s", error.str())


def _topic(schema: EventSchema) -> str:
    return schema.topic or PREFIX + schema.dataset


def _group(schema: EventSchema) -> str:
    return f"gyre.{schema.dataset}"


def _time(milliseconds: int) -> datetime:
    """Return a moment of a record, aware UTC."""
    return BEGINNING + timedelta(milliseconds=milliseconds)

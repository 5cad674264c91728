"""A team's Kafka as the broker of events.

`gyre.events.DATASET` is a topic, a record the events of an entity in one request, by the key of the
entity: a JSON list of rows. A dataset may name a topic that others write. Consumers share the
partitions as the group `gyre.DATASET`; they commit an offset once the table has the rows before it.
GYRE_EVENTS_PREFIX is another beginning than `gyre.`.
A record that cannot be read is copied to the topic `TOPIC.gyre-dead-letters`.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

from confluent_kafka import (
    OFFSET_BEGINNING,
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
    first_records,
    kafka_errors,
    make_topic,
    partitions_of,
    place_of,
    producer,
    records_between,
    sent_at,
)
from core.errors import BrokerUnavailableError, DataError
from core.settings import Settings
from core.timestamps import BEGINNING
from feature_engine.events.interface import ConsumerLag, Entry, Record, Row
from feature_repo.event_schema import EventSchema

DEAD_LETTERS = ".gyre-dead-letters"
DEAD_MILLISECONDS = 6_000
"""Time without a sign of life after which others read the partitions of a consumer."""
LOOK_SECONDS = 60.0
"""Time between two looks whether Gyre's own topic is there."""
MAX_BYTES = 32_000_000
"""Bytes of entries from which on no more are read."""
MAX_REASON = 1_000
"""Letters of the reason that a dead letter carries."""
FATAL = "_FATAL"
"""Error of a producer that sends nothing any more."""
NO_ANSWER = ("_MSG_TIMED_OUT", "_TIMED_OUT")
"""Errors after which a dead letter is sent again: Kafka is away."""
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

    def now(self) -> datetime:
        # Kafka tells no time but that of its records.
        return datetime.now(UTC)

    def lag(self, schema: EventSchema) -> ConsumerLag:
        with kafka_errors(_topic(self._settings, schema)):
            ends = {}
            starts = []
            for start, end in self._uncommitted(schema):
                starts.append(start)
                ends[start.partition] = end
            firsts = first_records(self._settings, starts)
        count = 0
        arrivals = []
        for start in starts:
            first = firsts[start.partition]
            end = ends[start.partition]
            if first.error():  # only marks of transactions, or one under way
                count += max(end - place_of(first)[1], 0)
            else:
                count += end - start.offset
                arrivals.append(_time(first.timestamp()[1]))
        return ConsumerLag(count, min(arrivals, default=None))

    def waiting(self, schema: EventSchema) -> Iterator[bytes]:
        with kafka_errors(_topic(self._settings, schema)):
            for start, end in self._uncommitted(schema):
                ends = {start.partition: end}
                for record in records_between(self._settings, [start], ends):
                    yield record.value() or b""

    def _uncommitted(self, schema: EventSchema) -> list[tuple[TopicPartition, int]]:
        """Return the partitions with records that no consumer has committed, and their ends."""
        waiting = []
        topic = _topic(self._settings, schema)
        group = client_settings(self._settings, group_id=_group(self._settings, schema))
        with closing(Consumer(group)) as consumer:
            if topic not in consumer.list_topics(timeout=SECONDS).topics:
                return []
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
        self._producer: Producer | None = None
        """The producer of single records."""
        self._transactions = ThreadPoolExecutor(1)
        """Runs one transaction after the other, as a producer has one at a time."""
        self._transactional_id = f"{settings.events_prefix}{uuid4()}"
        self._transactional: Producer | None = None

    def records(self, schema: EventSchema, events: Sequence[Row]) -> list[Record]:
        """Return a record for each entity; of events with one key, the last counts."""
        if not (schema.entity and schema.key):
            raise BrokerUnavailableError(
                f"{schema.dataset}: no consumer of this version has run: gyre consume"
            )
        events_of_row = {
            tuple(event[name] for name in schema.key): event for event in events
        }
        events_by_key: dict[bytes, list[Row]] = {}
        for event in events_of_row.values():
            key = to_json(event[schema.entity])
            events_by_key.setdefault(key, []).append(event)
        return [Record(key, to_json(rows)) for key, rows in events_by_key.items()]

    async def put(self, dataset: str, records: Sequence[Record]) -> str:
        topic = _own_topic(self._settings, dataset)
        with kafka_errors(topic):
            try:
                is_single = len(records) == 1
                put = (
                    self._put(topic, records[0])
                    if is_single
                    else self._put_all(topic, records)
                )
                message = await asyncio.wait_for(put, SECONDS)
            except TimeoutError as exc:
                raise BrokerUnavailableError(
                    f"Kafka: {topic}: no answer in time"
                ) from exc
            except KafkaException as exc:
                error = exc.args[0]
                if error.name() == FATAL:
                    self._producer = None  # the next request makes another
                if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    text = f"{topic}: {error.str()}: send fewer events, or raise message.max.bytes"
                    raise DataError(text) from exc
                raise
        partition, offset = place_of(message)
        return f"{topic}/{partition}/{offset}"

    async def _put(self, topic: str, record: Record) -> Message:
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[Message] = loop.create_future()
        if self._producer is None:
            self._producer = producer(self._settings)
            report = partial(self._report, self._producer)
            threading.Thread(target=report, daemon=True).start()
        self._producer.produce(
            topic,
            record.events,
            record.key,
            on_delivery=partial(_end_wait, loop, delivered),
        )
        return await delivered

    def _report(self, client: Producer) -> None:
        """Have a producer report what is delivered, until it fails for good or another is made."""
        with suppress(KafkaException):
            while self._producer is client:
                client.poll(0.1)

    async def _put_all(self, topic: str, records: Sequence[Record]) -> Message:
        loop = asyncio.get_running_loop()
        put_all = partial(self._put_in_transaction, topic, records)
        return await loop.run_in_executor(self._transactions, put_all)

    def _put_in_transaction(self, topic: str, records: Sequence[Record]) -> Message:
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
        self._producer = None
        self._transactions.shutdown(wait=False, cancel_futures=True)


def _end_wait(
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
        self._is_own = not schema.topic
        self._topic = _topic(settings, schema)
        self._messages: list[Message] = []
        """Records that Kafka delivered, and that are no entries yet."""
        self._entries: list[KafkaEntry] = []
        self._newest: dict[int, int] = {}
        """Partition → arrival of its newest record, in milliseconds."""
        self._deliveries = 0
        self._letter_errors: list[KafkaError] = []
        """Errors of dead letters that were just sent."""
        self._is_member = False
        self._is_new = False
        """Whether this consumer has made the topic and no partition of it was assigned yet."""
        self._next_look = 0.0
        """Moment (monotonic) of the next look for Gyre's own topic."""
        self._consumer = Consumer(
            client_settings(
                settings,
                client_id=consumer,
                group_id=_group(settings, schema),
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                session_timeout_ms=DEAD_MILLISECONDS,
            )
        )

    def declare(self) -> None:
        """Make Gyre's own topic, also where somebody has deleted it, and join the group."""
        if self._is_own and time.monotonic() > self._next_look:
            if make_topic(self._settings, self._topic):
                self._begin_anew()
            self._next_look = time.monotonic() + LOOK_SECONDS
        if not self._is_member:
            self._consumer.subscribe(
                [self._topic],
                on_assign=self._take,
                on_revoke=self._leave,
                on_lost=self._leave,
            )
            self._is_member = True

    def _begin_anew(self) -> None:
        """Leave the group: its offsets are of a topic that is no more."""
        self._forget(set(self._newest))
        self._is_new = True
        if self._is_member:
            self._consumer.unsubscribe()
            self._is_member = False

    def _take(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Read partitions from where the group is, and those of a new topic from their beginning."""
        if self._is_new:
            for partition in partitions:
                partition.offset = OFFSET_BEGINNING
        self._is_new = False
        consumer.assign(partitions)

    def _leave(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Forget the records of partitions that another consumer reads from now on."""
        self._forget({partition.partition for partition in partitions})

    def _forget(self, partitions: Collection[int]) -> None:
        """Forget everything about partitions that Kafka does not have acknowledged."""
        for partition in partitions:
            self._newest.pop(partition, None)
        self._messages = [
            message
            for message in self._messages
            if place_of(message)[0] not in partitions
        ]
        self._entries = [
            entry for entry in self._entries if entry.partition not in partitions
        ]
        self._deliveries = 0

    def wait(self, seconds: float) -> None:
        self._fetch(1, seconds)

    def read(self) -> list[KafkaEntry]:
        self._fetch(READ_COUNT, 0.0)
        if self._entries:
            self._deliveries += 1
        return [*self._entries]

    def _fetch(self, count: int, seconds: float) -> None:
        size = sum(len(entry.events) for entry in self._entries)
        room = READ_COUNT - len(self._entries)
        if room <= 0 or size > MAX_BYTES:
            # The call shows Kafka that this consumer lives, and brings no record.
            self._consumer.pause(self._consumer.assignment())
        errors = []
        for message in self._consumer.consume(max(min(count, room), 1), seconds):
            if message.error():
                errors.append(message.error())
            else:
                self._messages.append(message)
        self._consumer.resume(self._consumer.assignment())
        # One after the other: a message leaves the list once it is an entry.
        while self._messages:
            self._entries.append(self._entry(self._messages[0]))
            del self._messages[0]
        if errors:
            raise KafkaException(errors[0])

    def _entry(self, message: Message) -> KafkaEntry:
        partition, offset = place_of(message)
        arrival = max(self._newest_arrival(partition), sent_at(message))
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
            first, end = self._consumer.get_watermark_offsets(place, timeout=SECONDS)
            if committed.offset >= 0 and not first <= committed.offset <= end:
                logger.error(
                    "%s partition %d: records were lost before they were read: it has %d to %d, "
                    "the next one is %d",
                    self._topic,
                    partition,
                    first,
                    end,
                    committed.offset,
                )
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

    def reject(self, reasons: Mapping[Entry, str]) -> None:
        """Copy records, each with its place and the reason as headers, if Kafka takes them."""
        topic = self._topic + DEAD_LETTERS
        try:
            for entry, reason in reasons.items():
                place = json.dumps(entry.place)
                self._dead_letters.produce(
                    topic,
                    entry.events,
                    entry.key,
                    headers={"reason": reason[:MAX_REASON], "place": place},
                    on_delivery=self._note_delivery,
                )
            self._dead_letters.flush()
        except KafkaException as exc:
            self._note_delivery(exc.args[0])
        errors = self._letter_errors
        self._letter_errors = []
        for error in errors:
            self.__dict__.pop("_dead_letters", None)  # the next call makes another
            if error.name() in NO_ANSWER:
                raise KafkaException(error)
            logger.warning("%s: quarantine alone has a record: %s", topic, error.str())

    def _note_delivery(
        self, error: KafkaError | None, _message: Message | None = None
    ) -> None:
        if error:
            self._letter_errors.append(error)

    @cached_property
    def _dead_letters(self) -> Producer:
        make_topic(self._settings, self._topic + DEAD_LETTERS)
        return producer(self._settings)

    def close(self) -> None:
        self._consumer.close()


def _own_topic(settings: Settings, dataset: str) -> str:
    return f"{settings.events_prefix}events.{dataset}"


def _topic(settings: Settings, schema: EventSchema) -> str:
    return schema.topic or _own_topic(settings, schema.dataset)


def _group(settings: Settings, schema: EventSchema) -> str:
    return settings.events_prefix + schema.dataset


def _time(milliseconds: int) -> datetime:
    """Return a moment of a record, aware UTC."""
    return BEGINNING + timedelta(milliseconds=milliseconds)

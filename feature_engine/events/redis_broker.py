"""Redis Streams as the broker of events.

`gyre:events:DATASET` is a stream, an entry a request; field `events`: a JSON list of rows. The
consumer acknowledges an entry once the table has its rows; no other entry leaves the stream.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pydantic_core import to_json
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from core.errors import BrokerUnavailableError
from core.settings import Settings
from feature_engine.events.interface import ConsumerLag, Entry, Record, Row
from feature_engine.events.schema import SCHEMAS, TIMEOUT_SECONDS
from feature_repo.event_schema import EventSchema
from feature_repo.online_store import redis_client, redis_errors

GROUP = "gyre"
MAX_ENTRIES = 10_000
"""Entries of a dataset that may wait for the consumer."""
MAX_BYTES = 256_000_000
"""Memory that these entries may take: the features are in the same Redis."""
READ_COUNT = 100
"""Entries that one call reads: each may hold 1,000 rows."""
PUT = """
local count = redis.call('XLEN', KEYS[1])
-- 0: the memory of all entries, not of the first five.
local memory = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0) or 0
if count >= tonumber(ARGV[2]) or memory + #ARGV[1] > tonumber(ARGV[3]) then
  return {count, memory}
end
local persistence = redis.call('INFO', 'persistence')
local is_syncing = persistence:find('aof_pending_bio_fsync:[1-9]') and 1 or 0
return {redis.call('XADD', KEYS[1], '*', 'events', ARGV[1]), is_syncing}
"""
"""Adds an entry if there is room: its id, and whether Redis syncs its file at this moment; else the
number of entries and their bytes."""
NOT_WRITTEN = b"aof_last_write_status:err"
"""What Redis says of its file while it cannot write it."""
POLL_SECONDS = 0.01
"""Pause before Redis is asked again whether it has written its file."""
DEAD_AFTER = 60_000
"""Milliseconds after which an entry that nobody acknowledged is another consumer's."""


class RedisBroker:
    """The Redis of an installation: see `interface.Broker`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def intake(self) -> "RedisIntake":
        return RedisIntake(self._settings)

    def stream(self, schema: EventSchema, consumer: str) -> "RedisStream":
        return RedisStream(self._settings, schema.dataset, consumer)

    def now(self) -> datetime:
        with redis_errors(), redis_client(self._settings) as redis:
            seconds, microseconds = redis.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(
            microseconds=microseconds
        )

    def lag(self, schema: EventSchema) -> ConsumerLag:
        stream = _stream(schema.dataset)
        with redis_errors(), redis_client(self._settings) as redis:
            first_entries = _entries(redis.xrange(stream, count=1))
            return ConsumerLag(
                entries=redis.xlen(stream),
                oldest=first_entries[0].arrival if first_entries else None,
            )

    def waiting(self, schema: EventSchema) -> Iterator[bytes]:
        with redis_errors(), redis_client(self._settings) as redis:
            for entry in _entries(redis.xrange(_stream(schema.dataset))):
                yield entry.events


class FileState(NamedTuple):
    """What Redis says of its append-only file; zeros where it has none.

    Attributes:
        size: Bytes that the file has.
        unwritten: Bytes that it lacks.
        is_syncing: Whether Redis waits for the disk.

    """

    size: int
    unwritten: int
    is_syncing: bool

    @classmethod
    def of(cls, persistence: Any) -> "FileState":
        """Read the answer of `INFO persistence`."""
        return cls(
            size=_number(persistence, b"aof_current_size"),
            unwritten=_number(persistence, b"aof_buffer_length"),
            is_syncing=_number(persistence, b"aof_pending_bio_fsync") > 0,
        )


class RedisIntake:
    """Serving's side: see `interface.Intake`."""

    def __init__(self, settings: Settings) -> None:
        # Nothing is tried twice: a second XADD would be a second entry.
        self._redis = AsyncRedis.from_url(
            settings.redis_address, socket_timeout=TIMEOUT_SECONDS
        )
        # Of each request one line is asked for: a dictionary of all takes longer than the call.
        self._redis.set_response_callback("INFO", _as_it_is)
        self._put = self._redis.register_script(PUT)

    def records(self, schema: EventSchema, events: Sequence[Row]) -> list[Record]:
        return [Record(schema.dataset.encode(), to_json(events))]

    async def put(self, dataset: str, records: Sequence[Record]) -> str:
        (record,) = records
        with redis_errors():
            reply: Any = await self._put(
                keys=[_stream(dataset)], args=[record.events, MAX_ENTRIES, MAX_BYTES]
            )
            entry_id, is_syncing = reply
            if not isinstance(entry_id, bytes):
                count, memory = reply
                size = memory + len(record.events)
                raise BrokerUnavailableError(
                    f"{dataset}: {count} requests ({size / 1e6:.1f} MB) wait for `gyre consume`, "
                    f"at most {MAX_ENTRIES} ({MAX_BYTES / 1e6:.0f} MB) may; see gyre status"
                )
            if is_syncing:
                await self._await_write(dataset)
            # Else Redis writes its file before it answers; it answers also where it could not write.
            persistence: Any = await self._redis.info("persistence")
        if NOT_WRITTEN in persistence:
            raise BrokerUnavailableError(
                f"{dataset}: Redis could not write its file: is the disk full? A kill would lose the "
                "event, so that it is not accepted: make room, and send it again"
            )
        return entry_id.decode()

    async def _await_write(self, dataset: str) -> None:
        """Wait until Redis has written to its file what it holds now.

        With `appendfsync everysec`, Redis answers without having written while it syncs the file:
        for up to two seconds it keeps what came in memory, which a kill would lose.

        Raises:
            BrokerUnavailableError: It has not within TIMEOUT_SECONDS.

        """
        end_time = time.monotonic() + TIMEOUT_SECONDS
        state = FileState.of(await self._redis.info("persistence"))
        end_of_file = state.size + state.unwritten
        while state.is_syncing and state.size < end_of_file:
            if time.monotonic() > end_time:
                raise BrokerUnavailableError(
                    f"{dataset}: Redis could not write its file within {TIMEOUT_SECONDS:g} s: is the "
                    "disk slow? A kill would lose the event, so that it is not accepted: send it again"
                )
            await asyncio.sleep(POLL_SECONDS)
            state = FileState.of(await self._redis.info("persistence"))

    async def close(self) -> None:
        await self._redis.aclose()


class RedisStream:
    """The consumer's side: see `interface.Stream`. Errors of Redis are raised as they are."""

    def __init__(self, settings: Settings, dataset: str, consumer: str) -> None:
        self._name = _stream(dataset)
        self._consumer = consumer
        self._redis = redis_client(settings)

    def declare(self) -> None:
        """Make the stream, and claim entries of dead consumers."""
        with suppress(ResponseError):  # it is there
            self._redis.xgroup_create(self._name, GROUP, id="0", mkstream=True)
        self._redis.xautoclaim(
            self._name, GROUP, self._consumer, DEAD_AFTER, count=READ_COUNT
        )

    def wait(self, seconds: float) -> None:
        milliseconds = int(1000 * seconds)
        block = milliseconds or 1  # with 0, Redis would wait for ever
        self._fetch(">", count=1, block=block)

    def read(self) -> list[Entry]:
        """Return delivered entries that are not acknowledged, else new ones."""
        entries = self._fetch("0", count=READ_COUNT)
        return entries or self._fetch(">", count=READ_COUNT)

    def _fetch(self, start: str, **options: Any) -> list[Entry]:
        replies: Any = self._redis.xreadgroup(
            GROUP, self._consumer, {self._name: start}, **options
        )
        return [entry for _, records in replies for entry in _entries(records)]

    def deliveries(self, entry: Entry) -> int:
        """Return how often an entry was read, also by consumers that have died."""
        details: Any = self._redis.xpending_range(
            self._name,
            GROUP,
            min=entry.id,
            max=entry.id,
            count=1,
        )
        return int(details[0]["times_delivered"])

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Acknowledge and remove entries, in one step."""
        ids = [entry.id for entry in entries]
        with self._redis.pipeline() as pipe:
            pipe.xack(self._name, GROUP, *ids)
            pipe.xdel(self._name, *ids)
            pipe.execute()

    def reject(self, reasons: Mapping[Entry, str]) -> None:
        """Do nothing: quarantine has the entries."""

    def close(self) -> None:
        self._redis.close()


def _entries(records: Iterable[Any]) -> list[Entry]:
    """Return entries of Redis; an entry without fields was deleted, and is left out."""
    entries = []
    for key, fields in records:
        entry_id = key.decode()
        milliseconds, _, _ = entry_id.partition("-")
        arrival = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
        if fields:
            events = fields.get(b"events", b"")
            entries.append(Entry(id=entry_id, events=events, arrival=arrival))
    return entries


def _number(persistence: bytes, name: bytes) -> int:
    match = re.search(rb"%s:(\d+)" % name, persistence)
    return int(match[1]) if match else 0


def _as_it_is(response: Any, **kwargs: Any) -> Any:  # noqa: ARG001
    return response


def _stream(dataset: str) -> str:
    return f"{SCHEMAS}:{dataset}"

"""The broker of events: Redis Streams. No other module knows that. It imports no Feast, no Arrow.

Stream `gyre:events:DATASET`, one entry a request: field `events`, a JSON list of rows. Hash
`gyre:events` holds each dataset's EventSchema as JSON; the consumer writes it.
A consumer of the group reads, then acknowledges what is in the table; nothing else is removed.
"""

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, create_model
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError, ResponseError

from core.errors import BrokerUnavailableError, DataError
from core.json_types import Int64
from core.settings import Settings

if TYPE_CHECKING:
    from feature_repo.definition import Dataset

GROUP, SCHEMAS = "gyre", "gyre:events"
DEADLINE = 1.0
"""Seconds that Redis may take for one call."""
MAX_WAITING = 10_000
"""Entries that may wait for the consumer."""
AT_ONCE = 100
"""Entries that one call reads: each may hold 1,000 rows."""
IDLE, DEAD_AFTER = 3_000, 60_000
"""Milliseconds without a call: a consumer at work has fewer; of a dead one entries are claimed."""
Time = Annotated[AwareDatetime, Field(strict=True), AfterValidator(lambda at: at.astimezone(UTC))]
Double = Annotated[float, Field(strict=True, allow_inf_nan=False)]
TYPES: dict[str, Any] = {
    "bool": Annotated[bool, Field(strict=True)],
    **dict.fromkeys(("int8", "int16", "int32", "int64"), Int64),
    **dict.fromkeys(("float", "double"), Double),
    "string": Annotated[str, Field(strict=True)],
    "timestamp[us, tz=UTC]": Time,
}
"""Arrow types that a column of an event may have, and what their values are in JSON."""


class EventSchema(BaseModel):
    """Columns of a dataset's events: name to Arrow type. required: those that may not be null."""

    dataset: str
    columns: dict[str, str]
    required: list[str]
    event_time: str

    def row_model(self) -> type[BaseModel]:
        """Return the model of one event: every column, strictly, times with an offset."""
        fields: dict[str, Any] = {
            name: (TYPES[kind] if name in self.required else TYPES[kind] | None, ...)
            for name, kind in self.columns.items()
        }
        config = ConfigDict(extra="forbid", protected_namespaces=())
        return create_model(f"{self.dataset.capitalize()}Event", __config__=config, **fields)


def event_schema(dataset: "Dataset", never_null: set[str]) -> EventSchema:
    """Return what an event of `dataset` is.

    never_null: columns that a rule of its suite forbids to be null; key, entity and event time are.

    Raises:
        DataError: a column has a type that no event can carry.

    """
    columns = {field.name: str(field.type) for field in dataset.schema}
    for name, kind in columns.items():
        if kind not in TYPES:
            raise DataError(f"{dataset.name}.{name}: expected {', '.join(TYPES)}, found {kind}")
    required = {*dataset.key, dataset.entity, dataset.event_time, *never_null}
    required |= {field.name for field in dataset.schema if not field.nullable}
    return EventSchema(
        dataset=dataset.name,
        columns=columns,
        required=sorted(required),
        event_time=dataset.event_time,
    )


class Entry(NamedTuple):
    """What one request sent. id: Redis gives it, in the order of arrival."""

    id: str
    events: bytes

    @property
    def arrival(self) -> datetime:
        """When Redis had it, aware UTC."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)


class Intake:
    """Serving's side. Every call raises BrokerUnavailableError where Redis does not answer."""

    def __init__(self, settings: Settings) -> None:
        # Nothing is tried twice: a second XADD would be a second entry.
        self._redis = AsyncRedis.from_url(settings.redis_address, socket_timeout=DEADLINE)

    async def schemas(self) -> dict[str, bytes]:
        """Return the EventSchema (JSON) of each dataset that takes events; there is one."""
        try:
            found = await self._redis.hgetall(SCHEMAS)  # type: ignore[misc]  # (sync or not)
        except RedisError as exc:
            raise BrokerUnavailableError(f"Redis: {exc}") from exc
        if not found:
            raise BrokerUnavailableError("no dataset takes events yet: is `gyre consume` running?")
        return {name.decode(): schema for name, schema in found.items()}

    async def put(self, dataset: str, events: bytes) -> str:
        """Put a request's events (a JSON list) on the stream; return the entry's id."""
        try:
            waiting = await self._redis.xlen(_stream(dataset))
            if waiting >= MAX_WAITING:
                full = f"{waiting} requests wait for `gyre consume`, at most {MAX_WAITING} may"
                raise BrokerUnavailableError(f"{dataset}: {full}; see gyre status")
            added: bytes = await self._redis.xadd(_stream(dataset), {"events": events})
        except RedisError as exc:
            raise BrokerUnavailableError(f"Redis: {exc}") from exc
        return added.decode()

    async def close(self) -> None:
        await self._redis.aclose()


class Stream:
    """The consumer's side, for one thread. name: of the consumer, the same after a restart."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._name = name
        self._redis = Redis.from_url(settings.redis_address, socket_timeout=2 * DEADLINE)

    def declare(self, schema: EventSchema) -> None:
        """Make the stream, unless it is there, say what an event is, claim entries of the dead."""
        stream = _stream(schema.dataset)
        try:
            self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except ResponseError as exc:
            if "BUSYGROUP" not in str(exc):
                raise
        self._redis.hset(SCHEMAS, schema.dataset, schema.model_dump_json())
        self._redis.xautoclaim(stream, GROUP, self._name, DEAD_AFTER, count=AT_ONCE)

    def wait(self, datasets: Iterable[str]) -> None:
        """Return when there is a new entry, which `read` returns too, or after a second."""
        streams: dict[Any, Any] = {_stream(name): ">" for name in datasets}
        block = int(DEADLINE * 1000)
        self._redis.xreadgroup(GROUP, self._name, streams, count=1, block=block)

    def read(self, dataset: str) -> list[Entry]:
        """Return entries in order: those delivered and not acknowledged, else new ones."""
        return self._read(dataset, "0") or self._read(dataset, ">")

    def _read(self, dataset: str, start: str) -> list[Entry]:
        streams: dict[Any, Any] = {_stream(dataset): start}
        found: Any = self._redis.xreadgroup(GROUP, self._name, streams, count=AT_ONCE)
        entries = [entry for _, part in found for entry in part]
        # An entry without fields was deleted by somebody.
        return [Entry(key.decode(), each.get(b"events", b"")) for key, each in entries if each]

    def acknowledge(self, dataset: str, entries: Sequence[Entry]) -> None:
        """Acknowledge and remove entries, in one step."""
        stream, ids = _stream(dataset), [entry.id for entry in entries]
        with self._redis.pipeline() as pipe:
            pipe.xack(stream, GROUP, *ids)
            pipe.xdel(stream, *ids)
            pipe.execute()

    def close(self) -> None:
        self._redis.close()


def waiting(settings: Settings, dataset: str, pattern: str) -> int:
    """Count the requests on the stream whose events match a regular expression."""
    with Redis.from_url(settings.redis_address, socket_timeout=2 * DEADLINE) as redis:
        entries: Any = redis.xrange(_stream(dataset))
    texts = (each.get(b"events", b"").decode(errors="replace") for _, each in entries)
    return sum(bool(re.search(pattern, text)) for text in texts)


def rewrite_file(settings: Settings) -> None:
    """Have Redis write its file without what was deleted; a managed one may not be told to."""
    with Redis.from_url(settings.redis_address) as redis, suppress(ResponseError):
        _await_rewrite(redis)  # one that goes on began before
        redis.bgrewriteaof()
        _await_rewrite(redis)


def _await_rewrite(redis: Any) -> None:
    while redis.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.1)


def redis_problem(settings: Settings) -> str | None:
    """Ask Redis to answer; None if it does, not while it reads its file."""
    address, waits = settings.redis_address, {"socket_connect_timeout": DEADLINE}
    try:
        with Redis.from_url(address, socket_timeout=DEADLINE, **waits) as redis:
            redis.ping()
    except (RedisError, ValueError) as exc:
        return f"{address.rpartition('@')[2]}: {exc}"  # without its password
    return None


def consumer_problem(settings: Settings) -> str | None:
    """Ask Redis whether a consumer reads; None if one does."""
    try:
        with Redis.from_url(settings.redis_address, socket_timeout=DEADLINE) as redis:
            streams = [_stream(name.decode()) for name in redis.hkeys(SCHEMAS)]
            found: list[Any] = [redis.xinfo_consumers(stream, GROUP) for stream in streams]
    except RedisError as exc:
        return f"Redis: {exc}"
    idle = [consumer["idle"] for consumers in found for consumer in consumers]
    if min(idle, default=IDLE) < IDLE:
        return None
    last = datetime.now(UTC) - timedelta(milliseconds=min(idle, default=0))
    return f"no consumer reads the events{f' since {last:%Y-%m-%d %H:%M} UTC' if idle else ''}"


def _stream(dataset: str) -> str:
    return f"{SCHEMAS}:{dataset}"

"""The broker of events: Redis Streams. No other module knows that.

Stream `gyre:events:DATASET`, one entry a request: field `events`, a JSON list of rows. Hash
`gyre:events` holds each dataset's EventSchema as JSON; the consumer writes it.
A consumer of the group reads, then acknowledges what is in the table; nothing else is removed.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError, ResponseError

from feature_repo.events import EventSchema
from stack.errors import BrokerUnavailableError
from stack.settings import Settings

GROUP, SCHEMAS = "gyre", "gyre:events"
DEADLINE = 1.0
"""Seconds that Redis may take for one call."""
MAX_WAITING = 10_000
"""Entries that may wait for the consumer."""
AT_ONCE = 100
"""Entries that one call reads: each may hold 1,000 rows."""
IDLE, DEAD_AFTER = 3_000, 60_000
"""Milliseconds without a call: a consumer at work has fewer; of a dead one entries are claimed."""


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
        """Return entries in order: those delivered and not acknowledged, then new ones."""
        entries: list[Entry] = []
        for start in ("0", ">"):
            streams: dict[Any, Any] = {_stream(dataset): start}
            found: Any = self._redis.xreadgroup(GROUP, self._name, streams, count=AT_ONCE)
            entries = [
                Entry(key.decode(), fields.get(b"events", b""))
                for _, part in found
                for key, fields in part
                if fields  # else somebody deleted it
            ]
            if entries:
                break
        return entries

    def acknowledge(self, dataset: str, entries: Sequence[Entry]) -> None:
        """Acknowledge, then remove all that is older than the oldest entry not acknowledged."""
        stream = _stream(dataset)
        self._redis.xack(stream, GROUP, *(entry.id for entry in entries))
        pending: Any = self._redis.xpending(stream, GROUP)
        groups: Any = self._redis.xinfo_groups(stream)
        oldest = pending["min"] or groups[0]["last-delivered-id"]
        self._redis.xtrim(stream, minid=oldest, approximate=False)

    def close(self) -> None:
        self._redis.close()


def consumer_problem(settings: Settings) -> str | None:
    """Ask Redis whether a consumer reads; None if one does."""
    try:
        with Redis.from_url(settings.redis_address, socket_timeout=DEADLINE) as redis:
            streams = [_stream(name.decode()) for name in redis.hkeys(SCHEMAS)]
            found: list[Any] = [redis.xinfo_consumers(stream, GROUP) for stream in streams]
    except RedisError as exc:
        return f"Redis: {exc}"
    idle = [consumer["idle"] for consumers in found for consumer in consumers]
    return None if min(idle, default=DEAD_AFTER) < IDLE else "no consumer reads the events"


def _stream(dataset: str) -> str:
    return f"{SCHEMAS}:{dataset}"

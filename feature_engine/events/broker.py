"""The broker of events: Redis Streams, which no other module knows. It imports no Feast, no Arrow.

Keys of Redis:
    gyre:events: a hash, the EventSchema (JSON) of each dataset; the consumer writes it.
    gyre:events:DATASET: a stream, an entry a request; field `events`: a JSON list of rows.
The consumer acknowledges an entry once the table has its rows; no other entry leaves the stream.
"""

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from annotated_types import Ge, Lt
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, with_config
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError, ResponseError
from typing_extensions import TypedDict

from core.errors import BrokerUnavailableError, DataError
from core.json_types import Float64, Int64, exact_time
from core.settings import Settings
from core.timestamps import EARLIEST_TIME, LATEST_TIME
from core.user_code import DATASETS, makes_dataset
from feature_repo.online_store import redis_client, redis_errors

if TYPE_CHECKING:
    from feature_repo.definition import Dataset

GROUP = "gyre"
SCHEMAS = "gyre:events"
TIMEOUT_SECONDS = 1.0
"""How long Redis may take for one call of serving."""
MAX_ENTRIES = 10_000
"""Entries of a dataset that may wait for the consumer."""
MAX_BYTES = 256_000_000
"""Memory that these entries may take: the features are in the same Redis."""
MAX_LAG_SECONDS = 60.0
"""How long an entry may wait. Most wait for less than one second, and for some seconds while the
consumer starts, compacts files or waits for a lock: after a minute somebody has to look."""
LAST_ID = f"{2**63 - 1}-0"
"""Id of an entry that no clock reaches."""
READ_COUNT = 100
"""Entries that one call reads: each may hold 1,000 rows."""
IDLE_AFTER = 3_000
DEAD_AFTER = 60_000
"""Milliseconds without a call: a working consumer has fewer; entries of a dead one are claimed."""
ARROW_TYPES: dict[str, Any] = {
    "bool": bool,
    "int8": Int64,
    "int16": Int64,
    "int32": Int64,
    "int64": Int64,
    "float": Float64,
    "double": Float64,
    "string": str,
    "timestamp[us, tz=UTC]": Annotated[
        AwareDatetime, Ge(EARLIEST_TIME), Lt(LATEST_TIME), BeforeValidator(exact_time)
    ],
}
"""Arrow types that a column of an event may have, and the types of their values in JSON."""
EVENT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class EventSchema(BaseModel):
    """The columns of a dataset's events.

    Attributes:
        dataset: Name of the dataset.
        columns: Name to Arrow type.
        required: Columns that may not be null.
        event_time: The column with the event's time.

    """

    dataset: str
    columns: dict[str, str]
    required: list[str]
    event_time: str

    def row_type(self) -> Any:
        """Return the type of one event: every column, strictly, times with an offset."""
        fields: dict[str, Any] = {}
        for name, kind in self.columns.items():
            value_type = ARROW_TYPES[kind]
            if name not in self.required:
                value_type |= None
            fields[name] = value_type
        # No model: its attributes cannot have every name.
        event: Any = TypedDict("Event", fields)  # type: ignore[misc]
        return with_config(EVENT)(event)


def event_schema(dataset: "Dataset", never_null: set[str]) -> EventSchema:
    """Return the schema of a dataset's events.

    Args:
        dataset: The dataset; its key, entity and event time are never null.
        never_null: Columns that a rule of its suite forbids to be null.

    Raises:
        DataError: A column has a type that no event can carry.

    """
    required = {*dataset.key, dataset.entity, dataset.event_time, *never_null}
    columns = {}
    for field in dataset.schema:
        kind = str(field.type)
        if kind not in ARROW_TYPES:
            expected = ", ".join(ARROW_TYPES)
            raise DataError(
                f"{dataset.name}.{field.name}: expected {expected}, found {kind}"
            )
        columns[field.name] = kind
        if not field.nullable:
            required.add(field.name)
    return EventSchema(
        dataset=dataset.name,
        columns=columns,
        required=sorted(required),
        event_time=dataset.event_time,
    )


class Entry(NamedTuple):
    """The events of one request. Redis gives the id, in the order of arrival."""

    id: str
    events: bytes

    @property
    def arrival(self) -> datetime:
        """Time at which Redis received the entry, aware UTC."""
        milliseconds, _, _ = self.id.partition("-")
        return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


class Intake:
    """Serving's side. Every call raises BrokerUnavailableError if Redis does not answer."""

    def __init__(self, settings: Settings) -> None:
        # Nothing is tried twice: a second XADD would be a second entry.
        self._redis = AsyncRedis.from_url(
            settings.redis_address, socket_timeout=TIMEOUT_SECONDS
        )

    async def schemas(self) -> dict[str, bytes]:
        """Return the EventSchema (JSON) of each dataset that takes events; at least one does."""
        with redis_errors():
            schemas = await self._redis.hgetall(SCHEMAS)  # type: ignore[misc]  # (sync or not)
        if not schemas:
            raise BrokerUnavailableError(
                "no dataset takes events yet: is `gyre consume` running?"
            )
        return {name.decode(): schema for name, schema in schemas.items()}

    async def put(self, dataset: str, events: bytes) -> str:
        """Put the events of a request on the stream.

        Args:
            dataset: Name of a dataset that takes events.
            events: A JSON list.

        Returns:
            The id of the entry.

        Raises:
            BrokerUnavailableError: Too many events wait already, or Redis does not answer.

        """
        stream = _stream(dataset)
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xlen(stream)
                # 0: the memory of all entries, not of the first five.
                pipe.memory_usage(stream, samples=0)
                count, memory = await pipe.execute()
            size = (memory or 0) + len(events)
            if count >= MAX_ENTRIES or size > MAX_BYTES:
                raise BrokerUnavailableError(
                    f"{dataset}: {count} requests ({size / 1e6:.1f} MB) wait for `gyre consume`, "
                    f"at most {MAX_ENTRIES} ({MAX_BYTES / 1e6:.0f} MB) may; see gyre status"
                )
            entry_id: bytes = await self._redis.xadd(stream, {"events": events})
        return entry_id.decode()

    async def close(self) -> None:
        await self._redis.aclose()


class Stream:
    """The consumer's side; one thread reads a dataset."""

    def __init__(self, settings: Settings, name: str) -> None:
        """Connect a consumer; its name is the same after a restart."""
        self._name = name
        self._redis = redis_client(settings)

    def declare(self, schema: EventSchema) -> None:
        """Make the stream of a dataset, publish its schema, and claim entries of dead consumers."""
        stream = _stream(schema.dataset)
        with suppress(ResponseError):  # it is there
            self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        self._redis.hset(SCHEMAS, schema.dataset, schema.model_dump_json())
        self._redis.xautoclaim(stream, GROUP, self._name, DEAD_AFTER, count=READ_COUNT)
        self.show_life([schema.dataset])

    def show_life(self, datasets: Iterable[str]) -> None:
        """Have Redis note that this consumer lives, also while it reads no entries."""
        self._fetch(datasets, LAST_ID)  # it returns nothing

    def wait(self, datasets: Iterable[str], seconds: float) -> None:
        """Return when there is a new entry, which `read` returns too, or after some time.

        Args:
            datasets: Names of the datasets whose streams are waited for.
            seconds: At most one second; with 0 the call returns at once.

        """
        milliseconds = int(1000 * seconds)
        block = milliseconds or 1  # with 0, Redis would wait for ever
        self._fetch(datasets, ">", count=1, block=block)

    def read(self, dataset: str) -> list[Entry]:
        """Return entries in order: delivered ones that are not acknowledged, else new ones."""
        entries = self._fetch([dataset], "0", count=READ_COUNT)
        return entries or self._fetch([dataset], ">", count=READ_COUNT)

    def _fetch(
        self, datasets: Iterable[str], start: str, **options: Any
    ) -> list[Entry]:
        streams: dict[Any, Any] = {_stream(name): start for name in datasets}
        replies: Any = self._redis.xreadgroup(GROUP, self._name, streams, **options)
        return [entry for _, records in replies for entry in _entries(records)]

    def deliveries(self, dataset: str, entry: Entry) -> int:
        """Return how often `read` has returned an entry, also to consumers that have died.

        A restart of Redis forgets it.
        """
        details: Any = self._redis.xpending_range(
            _stream(dataset),
            GROUP,
            min=entry.id,
            max=entry.id,
            count=1,
        )
        return int(details[0]["times_delivered"])

    def acknowledge(self, dataset: str, entries: Sequence[Entry]) -> None:
        """Acknowledge and remove entries, in one step."""
        stream = _stream(dataset)
        ids = [entry.id for entry in entries]
        with self._redis.pipeline() as pipe:
            pipe.xack(stream, GROUP, *ids)
            pipe.xdel(stream, *ids)
            pipe.execute()

    def close(self) -> None:
        self._redis.close()


class ConsumerLag(NamedTuple):
    """The entries of a dataset that its consumer has not acknowledged.

    Attributes:
        entries: Their number.
        oldest: Arrival of the first of them, aware UTC; None where none waits.

    """

    entries: int
    oldest: datetime | None

    def seconds(self, now: datetime) -> float:
        """Return the age of the oldest entry; 0 where none waits."""
        return (now - self.oldest).total_seconds() if self.oldest else 0.0


def consumer_lags(settings: Settings) -> dict[str, ConsumerLag]:
    """Return the lag of each dataset that takes events.

    Raises:
        BrokerUnavailableError: Redis does not answer.

    """
    lags = {}
    with redis_errors(), redis_client(settings) as redis:
        for dataset in _datasets(redis):
            stream = _stream(dataset)
            first_entries = _entries(redis.xrange(stream, count=1))
            lags[dataset] = ConsumerLag(
                entries=redis.xlen(stream),
                oldest=first_entries[0].arrival if first_entries else None,
            )
    return lags


def waiting(settings: Settings, dataset: str, pattern: str) -> int:
    """Count the requests on the stream whose events match a regular expression."""
    with redis_client(settings) as redis:
        entries = _entries(redis.xrange(_stream(dataset)))
    texts = [entry.events.decode(errors="replace") for entry in entries]
    return sum(bool(re.search(pattern, text)) for text in texts)


def rewrite_file(settings: Settings) -> None:
    """Have Redis write its file anew, without deleted data; a managed Redis may refuse."""
    with redis_client(settings) as redis, suppress(ResponseError):
        _await_rewrite(redis)  # a rewrite under way has begun before
        redis.bgrewriteaof()
        _await_rewrite(redis)


def _await_rewrite(redis: Any) -> None:
    while redis.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.1)


def consumer_problem(settings: Settings) -> str | None:
    """Return the reason why no consumer reads events; None if one does, or no dataset takes any."""
    if not any(map(makes_dataset, DATASETS.glob("*.py"))):
        return None
    try:
        with redis_client(settings) as redis:
            for dataset in _datasets(redis):
                for consumer in redis.xinfo_consumers(_stream(dataset), GROUP):
                    if consumer["idle"] < IDLE_AFTER:
                        return None
    except RedisError as exc:
        return f"Redis: {exc}"
    return (
        "no consumer reads the events; windows that end go online with the next ingest"
    )


def _entries(records: Any) -> list[Entry]:
    """Return entries of Redis; an entry without fields was deleted, and is left out."""
    return [
        Entry(key.decode(), fields.get(b"events", b""))
        for key, fields in records
        if fields
    ]


def _datasets(redis: Any) -> list[str]:
    """Return the names of the datasets that take events."""
    return [name.decode() for name in redis.hkeys(SCHEMAS)]


def _stream(dataset: str) -> str:
    return f"{SCHEMAS}:{dataset}"

"""Everything that Gyre asks of a broker of events: Redis Streams and Kafka have it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from feature_repo.event_schema import EventSchema

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The events of one request, or a record of a topic.

    Attributes:
        id: Its name on the broker.
        events: A JSON list of events, or a record as its topic has it.
        arrival: Time at which the broker received it, aware UTC.
        key: Entries of one key keep their order; None: all do.

    """

    id: str
    events: bytes
    arrival: datetime
    key: bytes | None = None

    @property
    def place(self) -> dict[str, Any]:
        """The fields by which quarantine names it."""
        return {"entry": self.id}


class Record(NamedTuple):
    """Events that are stored as one: a JSON list.

    Attributes:
        key: Records of one key keep their order.

    """

    key: bytes
    events: bytes


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


class Intake(Protocol):
    """Serving's side."""

    def records(self, schema: EventSchema, events: Sequence[Row]) -> list[Record]:
        """Return the events of a request as the broker stores them."""
        ...

    async def put(self, dataset: str, records: Sequence[Record]) -> str:
        """Store records: all of them, or none.

        Returns:
            The id of the last one.

        Raises:
            BrokerUnavailableError: Too many events wait already, or the broker does not answer.
            DataError: An event is larger than the broker takes.

        """
        ...

    async def close(self) -> None: ...


class Stream(Protocol):
    """The consumer's side: the entries of one dataset, read by one thread."""

    def declare(self) -> None:
        """Make what is missing, and take over the entries of dead consumers."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when there is a new entry, which `read` returns too, or after some time.

        Args:
            seconds: At most one second; with 0 the call returns at once.

        """
        ...

    def read(self) -> Sequence[Entry]:
        """Return entries in order: those that are not acknowledged, then new ones."""
        ...

    def deliveries(self, entry: Entry) -> int:
        """Return how often `read` has returned the first entry; a restart may forget it."""
        ...

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Have the broker deliver entries, the first of `read`, no more."""
        ...

    def reject(self, reasons: Mapping[Entry, str]) -> None:
        """Keep entries that cannot be read, with the reasons, where the broker has a place for them."""
        ...

    def close(self) -> None: ...


class Broker(Protocol):
    """A broker of an installation.

    Every call raises BrokerUnavailableError if the broker does not answer.
    """

    def intake(self) -> Intake: ...

    def stream(self, schema: EventSchema, consumer: str) -> Stream:
        """Connect a consumer of a dataset; its name is the same after a restart."""
        ...

    def now(self) -> datetime:
        """Return the time by the clock that dates entries, aware UTC."""
        ...

    def lag(self, schema: EventSchema) -> ConsumerLag:
        """Return the lag of a dataset."""
        ...

    def waiting(self, schema: EventSchema) -> Iterator[bytes]:
        """Yield the entries of a dataset that are not acknowledged."""
        ...

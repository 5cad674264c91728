"""Events on file: what serving took in and ingest has yet to land.

Folder `GYRE_HOME/serving/events`, files `<dataset>-<pid>-<start>.jsonl` of serving's AppendLog, a
line an event: {"received": ISO 8601 UTC, "row": {column: value}}.

Of one key the newest arrival wins. An event arrives when it is received; a row of the source at
the `as_of` of the ingest that first sees it, which stands in the raw table as `ingested_at`. So
an event is pending while its key's raw row is older, and reading it again changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)

from stack.errors import DataError
from stack.json_types import Int64
from stack.log_files import final_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.storage import Table

Row = dict[str, Any]
Key = tuple[Any, ...]
FORBID = ConfigDict(extra="forbid", protected_namespaces=())
KINDS: tuple[tuple[Any, Any], ...] = (
    (pa.types.is_boolean, Annotated[bool, Field(strict=True)]),
    (pa.types.is_integer, Int64),
    (pa.types.is_floating, Annotated[float, Field(strict=True, allow_inf_nan=False)]),
    (pa.types.is_string, Annotated[str, Field(strict=True)]),
    (
        lambda found: pa.types.is_timestamp(found) and found.tz is not None,
        Annotated[AwareDatetime, Field(strict=True), AfterValidator(lambda at: at.astimezone(UTC))],
    ),
)
"""Arrow types that an event's columns may have, and what their values are in JSON."""


def row_model(dataset: Dataset) -> type[BaseModel]:
    """Return the form of an event: every column of the dataset, strictly, times with an offset.

    Raises:
        DataError: a column has a type that no event can carry.

    """
    fields: dict[str, Any] = {}
    for column in dataset.schema:
        kinds = [kind for fits, kind in KINDS if fits(column.type)]
        if not kinds:
            raise DataError(f"{dataset.name}.{column.name}: no event carries a {column.type}")
        fields[column.name] = (kinds[0], ...)
    return create_model(f"{dataset.name.capitalize()}Event", __config__=FORBID, **fields)


@dataclass(frozen=True, slots=True)
class Event:
    received: datetime
    row: Row
    file: Path


class EventFiles:
    """The files of a dataset, every worker's. Each line is read once; for one thread at a time."""

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        self._folder, self._name = settings.events, dataset.name
        line: dict[str, Any] = {"received": (AwareDatetime, ...), "row": (row_model(dataset), ...)}
        self._form = create_model("Line", __config__=FORBID, **line)
        self._known: dict[Path, tuple[int, list[Event], int]] = {}

    def paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._name}-*.jsonl"))

    def read(self, closed: Collection[Path] = ()) -> list[Event]:
        """Every final event on file, by time of receipt. closed: files that nobody writes to."""
        known = {}
        for path in self.paths():
            try:
                known[path] = self._read(path, closed=path in closed)
            except FileNotFoundError:  # landed and removed meanwhile
                continue
        self._known = known
        events = [event for _, found, _ in known.values() for event in found]
        return sorted(events, key=attrgetter("received"))

    def malformed(self, path: Path) -> int:
        """How many lines of a file that was read are no events."""
        return self._known[path][2] if path in self._known else 0

    def _read(self, path: Path, *, closed: bool) -> tuple[int, list[Event], int]:
        size, events, malformed = self._known.get(path, (0, [], 0))
        with path.open("rb") as file:
            file.seek(size)
            lines, taken = final_lines(file.read(), closed=closed)
        for line in lines:
            try:
                found: Any = self._form.model_validate_json(line)
                events.append(Event(found.received, found.row.model_dump(), path))
            except ValidationError:
                malformed += 1
        return size + taken, events, malformed


def key_of(row: Row, columns: Sequence[str]) -> Key:
    return tuple(row[name] for name in columns)


def not_aside(events: Sequence[Event], quarantine: Table) -> list[Event]:
    """Those whose row is not in quarantine, which holds rows as JSON."""
    aside = set(quarantine.read()["row"].to_pylist())
    if not aside:
        return [*events]
    return [e for e in events if json.dumps(e.row, default=str, sort_keys=True) not in aside]


def arrived_after(
    standing: dict[Key, Row], events: Iterable[Event], key: Sequence[str]
) -> dict[Key, Event]:
    """Of each key the newest event, where it is newer than the key's raw row in `standing`."""
    found: dict[Key, Event] = {}
    for event in events:  # by time of receipt
        of = key_of(event.row, key)
        if of not in standing or event.received > standing[of]["ingested_at"]:
            found[of] = event
    return found

"""The definitions of a dataset module beside its Feast objects: the dataset and its labels."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

import ibis.expr.types as ir
import pyarrow as pa

Expression = Callable[[ir.Table], ir.Table]
"""Computes rows of a view (join keys, event_timestamp, created, features) from raw rows."""

OWN_COLUMNS = ("ingested_at", "superseded")
"""Columns of a raw table that its source lacks."""
VIEW_COLUMNS = ("event_timestamp", "created", "period")
"""Columns of a view's table beside join keys and features."""
OWN_PREFIX = "_gyre_"
"""Prefix of columns that rows have only while they are computed."""
POSITION = f"{OWN_PREFIX}position"
"""Column that numbers rows, from 0."""
KNOWN_AT = f"{OWN_PREFIX}known_at"
"""Column of the time by which raw rows must have arrived to count for a row."""
TIMESTAMP = pa.timestamp("us", tz="UTC")
"""Arrow's type of event times and times of arrival."""
UNREADABLE = r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
DEFINITION_TAG = "definition."
"""Prefix of the tags of a run or version that hold the definition hashes of its features."""
TABLE_TAG = "table.raw."
"""Prefix of the tags of a run or version that name the raw tables it was made of."""

LabelExpression = Callable[..., ir.Table]
"""Computes labels of raw rows and snapshots (event_timestamp).

It returns join keys, event_timestamp and label (0 or 1, or a number). Where the spec says
`rows = "label"`, it takes raw rows alone, and event_timestamp is the event's own time, such as a
flight's departure; further columns are inputs of on-demand views.
"""


@dataclass(frozen=True)
class Label:
    """A value that a model learns to predict.

    A label exists from its row's event_timestamp + horizon + lateness on.

    Args:
        expression: Computes the labels.
        horizon: How far past event_timestamp the label looks.
        lateness: How long rows of the horizon may still arrive.
        unlabelled: Reason why some members of the population have no label. Without a reason,
            training refuses such members.

    """

    expression: LabelExpression
    horizon: timedelta
    lateness: timedelta
    unlabelled: str | None = None

    def __post_init__(self) -> None:
        if min(self.horizon, self.lateness) < timedelta(0):
            raise ValueError(
                "Label: expected horizon and lateness of 0 or more, found "
                f"{self.horizon} and {self.lateness}"
            )


@dataclass(frozen=True)
class Topic:
    """A topic of Kafka (GYRE_EVENTS_URL) that others write: its records are a dataset's events.

    Args:
        name: Name of the topic.
        format: `json`, or `avro` or `json-schema` with the schema registry's id before the record
            (GYRE_SCHEMA_REGISTRY__URL).
        fields: Column → field of the record, with a dot before each inner field
            (`payload.after.id`). Default: the field has the column's name.
        time_unit: Unit since 1970 of times that are numbers: `s`, `ms` or `us`. Default: times are
            texts in ISO 8601 with an offset, or of Avro's own type.

    """

    name: str
    format: Literal["json", "avro", "json-schema"] = "json"
    fields: Mapping[str, str] = field(default_factory=dict)
    time_unit: Literal["s", "ms", "us"] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", self.name):
            raise ValueError(
                f"Topic: expected the name of a topic, found {self.name!r}"
            )


@dataclass(frozen=True)
class Dataset:
    """A source of events, the feature views made of it, and the labels.

    Args:
        name: Name of its module.
        schema: Columns and types of a source row; times are timestamp[us, UTC].
        key: Columns that identify a row; the newest arrival of a key counts.
        event_time: Column with the time of the event.
        entity: Column that identifies the entity of a row. A view's row at t may depend on rows of
            its entity with an event time at or before t and on nothing else: only these are
            computed anew. It is a join key of every view. A view may have further join keys, each
            derived from a single raw row.
        look_back: How far before the newest raw row the source is read again for late rows and
            corrections; a full read finds older ones.
        silence: How long the source may go without an event before people are told.
        views: Expression of each feature view by its name.
        labels: Labels by name.
        topic: A topic of Kafka whose records are its events, in place of `POST /events`.
        lag: How long the source may take to say what an event has said. Within it, a source that
            says something older undoes no event ([the rule](../events.md#source-and-events)).
        version: Column whose higher value makes a row of a key count, whichever way it came.

    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    event_time: str
    entity: str
    look_back: timedelta
    silence: timedelta
    views: dict[str, Expression]
    labels: dict[str, Label]
    shipped: Path | None = None
    """The parquet file that stands in for a source; its dates are moved to today."""
    topic: Topic | None = None
    lag: timedelta = timedelta(hours=24)
    version: str | None = None
    rows_of: str | None = None
    """Another dataset with the same rows, whose source and suite this dataset uses."""

    def __post_init__(self) -> None:
        problems = name_problems(self.schema.names, OWN_COLUMNS)
        problems += name_problems([self.entity], VIEW_COLUMNS)
        if self.version is not None and self.version not in self.schema.names:
            problems.append(f"version: expected a column, found {self.version!r}")
        if self.lag < timedelta(0):
            problems.append(f"lag: expected 0 or more, found {self.lag}")
        if problems:
            raise ValueError(f"Dataset {self.name}: {'; '.join(problems)}")

    @property
    def source_name(self) -> str:
        """Name of the source and of the suite."""
        return self.rows_of or self.name


def name_problems(names: Iterable[str], own_names: Collection[str]) -> list[str]:
    """Return a line for each name that a column cannot have; tables do not tell capitals apart.

    Args:
        names: Names of a team's columns.
        own_names: Names of Gyre's columns in the same table.

    """
    problems = []
    former_names = {name.lower(): f"Gyre's own {name}" for name in own_names}
    for name in names:
        lower_name = name.lower()
        problem = ""
        if not name.strip():
            problem = "it has no name"
        elif re.search(UNREADABLE, name):
            problem = "its name has control characters"
        elif lower_name.startswith(OWN_PREFIX):
            problem = f"names that begin with {OWN_PREFIX} are Gyre's own"
        elif lower_name in former_names:
            problem = f"tables do not tell it from {former_names[lower_name]}"
        if problem:
            problems.append(f"column {name!r}: {problem}: rename it or leave it out")
        former_names.setdefault(lower_name, repr(name))
    return problems


def raw_schema(dataset: Dataset) -> pa.Schema:
    """Return the columns of the dataset's raw table: see `feature_engine.offline.raw.raw_table`."""
    own_columns = [("ingested_at", TIMESTAMP), ("superseded", pa.string())]
    return pa.schema([*dataset.schema, *own_columns])


def table_versions(tags: Mapping[str, str]) -> dict[str, int]:
    """Return the table version of each dataset that tags of a run or version name."""
    versions = {}
    for tag in sorted(tags):
        dataset = tag.removeprefix(TABLE_TAG)
        if dataset != tag and "." not in dataset:
            versions[dataset] = int(tags[tag])
    return versions

"""What a dataset module defines beside its Feast objects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import ibis.expr.types as ir
import pyarrow as pa

Expression = Callable[[ir.Table], ir.Table]
"""Raw rows → rows of one feature view: join keys, event_timestamp, created, features."""

TABLE_TAG = "table.raw."
"""Beginning of the tags of a run or version that name the raw tables it was made of."""

LabelExpression = Callable[..., ir.Table]
"""Raw rows, snapshots (event_timestamp) → join keys, event_timestamp, label (0 or 1; a number).

Where the spec says `rows = "label"`: raw rows alone → the same columns, event_timestamp being the
event's own time, such as a flight's departure; further columns are inputs of on-demand views.
"""


@dataclass(frozen=True)
class Label:
    """What a model learns. It exists from its row's event_timestamp + horizon + lateness on.

    horizon: how far past this time the label looks.
    lateness: how long rows of the horizon may still arrive.
    """

    expression: LabelExpression
    horizon: timedelta
    lateness: timedelta
    unlabelled: str | None = None
    """Why some members of the population have no label; without a reason training refuses it."""


@dataclass(frozen=True)
class Dataset:
    """A source of events, the feature views made of it, and the labels.

    schema: columns and types of a source row; times are timestamp[us, UTC].
    key: columns that identify a row; the newest arrival of a key wins.
    entity: column that says whose row it is. A view's row at t may depend on rows of its entity
    with an event time at or before t and on nothing else: only these are computed anew. It is a
    join key of every view; a view may have more, each derived from a single raw row.
    look_back: how far before the newest row known the source is read again for late rows and
    corrections; older ones are found by a full read.
    silence: how long the source may go without an event before that is worth a word.
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

    def differences(self, rows: pa.Table) -> str:
        """Say which columns of `rows` are not the schema's, and the remedy; empty if all are."""
        wanted = {field.name: str(field.type) for field in self.schema}
        found = {field.name: str(field.type) for field in rows.schema}
        types = {n: (wanted.get(n, "none"), found.get(n, "none")) for n in wanted | found}
        wrong = [f"column {n}: expected {a}, found {b}" for n, (a, b) in types.items() if a != b]
        remedy = f"Deliver the types of feature_repo/datasets/{self.name}.py, or change them there"
        return f"{'; '.join(wrong)}. {remedy} (a time has its zone)" if wrong else ""


def table_versions(tags: Mapping[str, str]) -> dict[str, int]:
    """Return the raw tables that tags of a run or version name: dataset and table version."""
    names = (tag.removeprefix(TABLE_TAG) for tag in tags if tag.startswith(TABLE_TAG))
    return {name: int(tags[TABLE_TAG + name]) for name in sorted(names) if "." not in name}

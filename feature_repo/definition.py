"""What a dataset module defines beside its Feast objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ibis.expr.types as ir

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    import pyarrow as pa

Expression = Callable[[ir.Table], ir.Table]
"""Raw rows → rows of one feature view: join keys, event_timestamp, created, features."""

LabelExpression = Callable[[ir.Table, ir.Table], ir.Table]
"""Raw rows, snapshots (event_timestamp) → join keys, event_timestamp, label (0 or 1; a number)."""


@dataclass(frozen=True)
class Label:
    """What a model learns. It exists from snapshot + horizon + lateness on.

    horizon: how far past its snapshot the label looks.
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
    """The parquet file that stands in for a source; see `date_demo`."""

    def differences(self, rows: pa.Table) -> str:
        """Say which columns of `rows` are not the schema's, and the remedy; empty if all are."""
        wanted = {field.name: str(field.type) for field in self.schema}
        found = {field.name: str(field.type) for field in rows.schema}
        types = {
            name: (wanted.get(name, "none"), found.get(name, "none")) for name in wanted | found
        }
        wrong = [f"column {n}: expected {a}, found {b}" for n, (a, b) in types.items() if a != b]
        remedy = f"Deliver the types of feature_repo/datasets/{self.name}.py, or change them there"
        return f"{'; '.join(wrong)}. {remedy} (a time has its zone)" if wrong else ""

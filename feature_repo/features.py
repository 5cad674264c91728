"""Feature engine: Ibis expressions over the raw tables, written as one parquet file per view."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    import ibis.expr.types as ir

    from feature_repo.definition import Dataset, Label
    from stack.settings import Settings
    from stack.storage import Table

TIME = pa.timestamp("us", tz="UTC")
VERSION_KEY = b"gyre.raw_version"


def write_views(settings: Settings, dataset: Dataset, raw: Table) -> None:
    """Compute every view of `dataset` from the newest version of its raw table.

    The new file replaces the old one when it is complete. A view that stands on this version
    already is left as it is.

    Raises:
        DataError: the raw table is empty, so there is nothing to compute from.

    """
    version = raw.version
    if version < 0:
        raise DataError(f"{dataset.name}: no rows yet; check the source")
    settings.features.mkdir(parents=True, exist_ok=True)
    for name, expression in dataset.views.items():
        path = view_path(settings, name)
        if _stands_on(path) == version:
            continue
        rows = expression(open_raw(raw, version)).to_pyarrow()
        # Newest last and in one order, so that the same rows give the same bytes.
        rows = _microseconds(rows).sort_by([(rows.column_names[0], "ascending"),
                                            ("event_timestamp", "ascending")])  # fmt: skip
        rows = rows.replace_schema_metadata({VERSION_KEY: str(version).encode()})
        partial = path.with_suffix(".part")
        pq.write_table(rows, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)


def view_path(settings: Settings, view: str) -> Path:
    return settings.features / f"{view}.parquet"


def open_raw(raw: Table, version: int | None = None, as_of: datetime | None = None) -> ir.Table:
    """Open a version of a raw table; `as_of` hides rows that became known only later."""
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET TimeZone = 'UTC'")
    rows = connection.read_parquet(raw.files(version))
    return rows if as_of is None else rows.filter(rows.ingested_at <= ibis.literal(as_of))


def labels(raw: ir.Table, label: Label, snapshots: Sequence[datetime]) -> pa.Table:
    """Rows (join key, event_timestamp, label) of every snapshot, in one order."""
    moments = ibis.memtable(pa.table({"event_timestamp": pa.array(snapshots, TIME)}))
    rows = _microseconds(label.expression(raw, moments).to_pyarrow())
    return rows.sort_by([("event_timestamp", "ascending"), (rows.column_names[0], "ascending")])


def _stands_on(path: Path) -> int | None:
    if not path.exists():
        return None
    metadata = pq.read_schema(path).metadata or {}
    return int(metadata[VERSION_KEY]) if VERSION_KEY in metadata else None


def _microseconds(rows: pa.Table) -> pa.Table:
    """Feast's DuckDB store wants microsecond UTC timestamps."""
    fields = [f.with_type(TIME) if pa.types.is_timestamp(f.type) else f for f in rows.schema]
    return rows.cast(pa.schema(fields))

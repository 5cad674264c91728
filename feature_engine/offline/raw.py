"""Raw rows: the table of a dataset, and its changes between two versions."""

from datetime import datetime
from typing import Any

import ibis.expr.types as ir

from core.settings import Settings
from core.tables.table import Table
from feature_engine.engines.engine import read_files
from feature_repo.definition import Dataset, raw_schema


def raw_table(settings: Settings, dataset: Dataset) -> Table:
    """Return the table with the rows of a dataset as they became known.

    It has the columns of the source, `ingested_at` and `superseded`: what the source and events have
    said of the key, where that may still decide which row counts (feature_engine/ingest/history.py).
    Of a row that the source gave, and about which there was no event, it is null.
    """
    return Table(settings, f"raw/{dataset.name}", raw_schema(dataset))


def open_raw(
    connection: Any,
    raw: Table,
    version: int | None = None,
    as_of: datetime | None = None,
) -> ir.Table:
    """Open a version of a raw table; `as_of` hides rows that became known later."""
    rows = read_files(connection, raw, raw.names(version))
    if as_of is None:
        return rows
    return rows.filter(rows.ingested_at <= as_of)


def changed_rows(
    connection: Any,
    raw: Table,
    old_version: int,
    new_version: int,
) -> ir.Table | None:
    """Return the raw rows that came or went between two versions; None if they are unknown by now."""
    files = raw.changed_files(old_version, new_version)
    if files is None:
        return None
    added_files, removed_files = files
    added = read_files(connection, raw, added_files).select(raw.schema.names)
    if not removed_files:
        return added
    # A merge copies rows, and so does compaction: most removed rows are in the added files too.
    removed = read_files(connection, raw, removed_files).select(raw.schema.names)
    new_rows = added.difference(removed, distinct=False)
    old_rows = removed.difference(added, distinct=False)
    return new_rows.union(old_rows)

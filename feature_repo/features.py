"""Raw rows: the table of a dataset, what changed between two versions, and labels made of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from core.errors import DataError
from core.settings import Settings
from core.storage import Table
from feature_repo.definition import Dataset, Label, raw_schema
from feature_repo.engines import connect

TIME = pa.timestamp("us", tz="UTC")


def raw_table(settings: Settings, dataset: Dataset) -> Table:
    """Return the rows of a dataset as they became known.

    Columns are those of the source, `ingested_at`, and `superseded`: of an event that corrected a
    row that row as JSON. The source may still deliver it, and then it is not new.
    """
    return Table(settings, f"raw/{dataset.name}", raw_schema(dataset))


def open_raw(
    raw: Table, version: int | None = None, as_of: datetime | None = None, connection: Any = None
) -> ir.Table:
    """Open a version of a raw table; `as_of` hides rows that became known only later."""
    rows = (connection or connect()).read_parquet(raw.files(version))
    if as_of is None:
        return rows
    return rows.filter(rows.ingested_at <= ibis.literal(as_of))


def changed_rows(
    connection: Any, raw: Table, old_version: int, new_version: int
) -> ir.Table | None:
    """Return raw rows that came or went between two versions; None if that is no longer known."""
    files = raw.changed_files(old_version, new_version)
    if files is None:
        return None
    added_files, removed_files = files
    added = _rows_of(connection, raw, new_version, added_files)
    if not removed_files:
        return added
    # A merge copies rows, and so does compaction: most removed rows are in the added files too.
    removed = _rows_of(connection, raw, new_version, removed_files)
    came = added.difference(removed, distinct=False)
    went = removed.difference(added, distinct=False)
    return came.union(went)


def _rows_of(connection: Any, raw: Table, version: int, files: Sequence[str]) -> ir.Table:
    """Open some files of a raw table; without files an empty table."""
    if files:
        rows = connection.read_parquet(files)
    else:
        rows = open_raw(raw, version, connection=connection).limit(0)
    return rows.select(raw.schema.names)


def labels(
    raw: ir.Table, label: Label, snapshots: Sequence[datetime], *, own: bool = False
) -> pa.Table:
    """Compute a label at some snapshots.

    Args:
        raw: Raw rows of the label's dataset.
        label: What is computed.
        snapshots: Times, aware UTC.
        own: Take the label's own rows, from the first of `snapshots` to the last.

    Returns:
        Join keys, event_timestamp and label of every snapshot, sorted by time and keys.

    Raises:
        DataError: The label's expression gives no such columns.

    """
    if own:
        rows = label.expression(raw)
    else:
        moments = pa.table({"event_timestamp": pa.array(snapshots, TIME)})
        rows = label.expression(raw, ibis.memtable(moments))
    missing_columns = {"event_timestamp", "label"} - set(rows.columns)
    if missing_columns:
        expected = f"expected columns {', '.join(sorted(missing_columns))}"
        raise DataError(f"a label's rows: {expected}, found {', '.join(rows.columns)}")
    if own:
        rows = rows.filter(rows.event_timestamp.between(min(snapshots), max(snapshots)))
    labelled = _in_microseconds(rows.to_pyarrow())
    keys = [name for name in labelled.column_names if name not in {"event_timestamp", "label"}]
    order = ["event_timestamp", *keys]
    return labelled.sort_by([(name, "ascending") for name in order])


def _in_microseconds(rows: pa.Table) -> pa.Table:
    """Feast's DuckDB store wants microsecond UTC timestamps."""
    fields = []
    for field in rows.schema:
        is_time = pa.types.is_timestamp(field.type)
        fields.append(field.with_type(TIME) if is_time else field)
    return rows.cast(pa.schema(fields))

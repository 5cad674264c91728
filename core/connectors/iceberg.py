"""Tables of Apache Iceberg, by pyiceberg's catalogs."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from core.connectors.formats import Later, TableFile
from core.errors import DataError


def open_iceberg(address: str, later: Later | None) -> pa.RecordBatchReader:
    """Open the newest snapshot of a table.

    Args:
        address: `iceberg://CATALOG#namespace.table`; pyiceberg's own environment or file describes
            the catalog (`PYICEBERG_CATALOG__CATALOG__URI`).
        later: Files that surely hold no such row are not read.

    Raises:
        DataError: The address is of another form.

    """
    from pyiceberg.io.pyarrow import schema_to_pyarrow  # noqa: PLC0415  (an extra)

    catalog, name = catalog_and_name(address)
    table = catalog.load_table(name)
    condition = _condition(table, later) if later else None
    scan = table.scan(row_filter=condition) if condition else table.scan()
    schema = schema_to_pyarrow(scan.projection())
    batches = _batches(table, scan)
    return pa.RecordBatchReader.from_batches(schema, batches).cast(schema)


def iceberg_files(address: str) -> list[TableFile]:
    """Return the files of the newest snapshot of a table in the order in which they are read.

    Only a snapshot that appends brings rows of its own: the others write rows of before again, and
    of a snapshot that is expired nothing tells which it was.

    Args:
        address: See `open_iceberg`.

    Raises:
        DataError: The address is of another form.

    """
    catalog, name = catalog_and_name(address)
    table = catalog.load_table(name)
    return [
        TableFile(
            commit=place.commit,
            is_of_commit=place.is_of_commit,
            read=partial(_rows_of_file, table, task),
        )
        for place, task in _ordered_tasks(table, table.scan())
    ]


class _Place(NamedTuple):
    """What orders the data files of a table.

    Attributes:
        commit: Number of the commit that added it, among those of all files.
        path: Its address.
        is_of_commit: Whether the commit brought its rows.

    """

    commit: int
    path: str
    is_of_commit: bool


def _batches(table: Any, scan: Any) -> Iterator[pa.RecordBatch]:
    """Read one file after the other, in the order of their commits.

    pyiceberg's own reader reads all at once into memory.
    """
    from pyiceberg.io.pyarrow import ArrowScan  # noqa: PLC0415  (an extra)

    reader = ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter)
    for _, task in _ordered_tasks(table, scan):
        yield from reader.to_record_batches([task])


def _rows_of_file(
    table: Any, task: Any, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow  # noqa: PLC0415  (an extra)

    scan = table.scan(selected_fields=tuple(columns))
    schema = schema_to_pyarrow(scan.projection())
    reader = ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter)
    for batch in reader.to_record_batches([task]):
        yield batch.cast(schema)


def _ordered_tasks(table: Any, scan: Any) -> list[tuple[_Place, Any]]:
    """Return the files of a scan in the order of their commits."""
    places = _places(table)
    try:
        tasks = [*scan.plan_files()]
    except TypeError:
        # pyiceberg compares the limit with the partition of rows without a time, which is null.
        tasks = [*table.scan().plan_files()]
    files = [(places[task.file.file_path], task) for task in tasks]
    return sorted(files, key=lambda file: file[0])


def _places(table: Any) -> dict[str, _Place]:
    """Return the place of each data file of a table, by its path.

    Tables of Iceberg's first format number no commit: their snapshots' times order them.
    """
    if table.current_snapshot() is None:  # nothing was written yet
        return {}
    from pyiceberg.table.snapshots import Operation  # noqa: PLC0415  (an extra)

    snapshots = {snapshot.snapshot_id: snapshot for snapshot in table.snapshots()}
    columns = ["snapshot_id", "sequence_number", "data_file"]
    entries = table.inspect.entries().select(columns).to_pylist()
    moments = []
    for entry in entries:
        snapshot = snapshots.get(entry["snapshot_id"])
        time = snapshot.timestamp_ms if snapshot else 0
        moments.append((entry["sequence_number"] or 0, time))
    numbers = {moment: number for number, moment in enumerate(sorted({*moments}))}
    places = {}
    for entry, moment in zip(entries, moments, strict=True):
        snapshot = snapshots.get(entry["snapshot_id"])
        summary = snapshot.summary if snapshot else None
        is_append = summary is not None and summary.operation == Operation.APPEND
        path = entry["data_file"]["file_path"]
        places[path] = _Place(numbers[moment], path, is_append)
    return places


def catalog_and_name(address: str) -> tuple[Any, str]:
    """Return pyiceberg's catalog, and the name of a table in it; see `open_iceberg`."""
    catalog_name, _, name = address.partition("://")[2].partition("#")
    if not catalog_name or "." not in name:
        raise DataError("expected iceberg://CATALOG#namespace.table")
    from pyiceberg.catalog import load_catalog  # noqa: PLC0415  (an extra)

    return load_catalog(catalog_name), name


def _condition(table: Any, later: Later) -> Any:
    from pyiceberg import expressions, types  # noqa: PLC0415  (an extra)

    if later.column not in {field.name for field in table.schema().fields}:
        return None
    kind = table.schema().find_field(later.column).field_type
    if isinstance(kind, types.DateType):
        limit = later.moment.date().isoformat()
    elif isinstance(kind, types.TimestampType | types.TimestamptzType):
        has_zone = isinstance(kind, types.TimestamptzType)
        limit = later.limit(has_zone=has_zone).isoformat()
    else:
        return None
    is_later = expressions.GreaterThanOrEqual(later.column, limit)
    return expressions.Or(is_later, expressions.IsNull(later.column))

"""Tables of Apache Iceberg, by pyiceberg's catalogs."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from core.connectors.formats import Later
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


def _batches(table: Any, scan: Any) -> Iterator[pa.RecordBatch]:
    """Read one file after the other, in the order of their commits.

    pyiceberg's own reader reads all at once into memory.
    """
    from pyiceberg.io.pyarrow import ArrowScan  # noqa: PLC0415  (an extra)

    reader = ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter)
    places = _places(table)
    try:
        tasks = [*scan.plan_files()]
    except TypeError:
        # pyiceberg compares the limit with the partition of rows without a time, which is null.
        tasks = [*table.scan().plan_files()]
    for task in sorted(tasks, key=lambda task: places[task.file.file_path]):
        yield from reader.to_record_batches([task])


def _places(table: Any) -> dict[str, tuple[int, int, str]]:
    """Return what orders the data files of a table: commit, its time in ms, and path.

    Tables of Iceberg's first format number no commit.
    """
    times = {
        snapshot.snapshot_id: snapshot.timestamp_ms for snapshot in table.snapshots()
    }
    entries = table.inspect.entries().select(
        ["snapshot_id", "sequence_number", "data_file"]
    )
    places = {}
    for entry in entries.to_pylist():
        path = entry["data_file"]["file_path"]
        time = times.get(entry["snapshot_id"], 0)
        places[path] = (entry["sequence_number"] or 0, time, path)
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

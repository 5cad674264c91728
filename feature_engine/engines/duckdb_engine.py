"""DuckDB as a compute engine: it runs in this process and reads copies of a table's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
from ibis.backends.sql.datatypes import DuckDBType
from sqlglot.expressions import convert

from core.tables.commits import AddedFile, added_file
from core.tables.query import quoted
from core.tables.table import Table
from feature_engine.engines.periods import PERIOD_MICROSECONDS


@contextmanager
def duckdb_connection(**config: Any) -> Iterator[Any]:
    """Connect to DuckDB, which Ibis sets to UTC, and close the connection in the end.

    Args:
        **config: Settings of DuckDB.

    """
    connection = ibis.duckdb.connect(**config)
    try:
        yield connection
    finally:
        connection.disconnect()


@contextmanager
def row_connection() -> Iterator[Any]:
    """Connect to a database of one thread for a few rows; it lasts as long as the process.

    A database takes longer to open than such a query takes. Tables end with their connection.
    """
    connection = ibis.duckdb.from_connection(_row_database().cursor())
    try:
        yield connection
    finally:
        connection.disconnect()


@cache
def _row_database() -> Any:
    # A cache of files would grow as long as the process lasts.
    return duckdb.connect(config={"threads": 1, "enable_external_file_cache": False})


def write_duckdb_files(
    connection: Any,
    rows: ir.Table,
    table: Table,
    first_period: int | None,
    folder: Path,
) -> list[AddedFile]:
    """Write feature rows as files of a table: see `feature_engine.engines.engine.write_files`."""
    files: list[AddedFile] = []
    folder.mkdir()
    period = f"epoch_us(event_timestamp) // {PERIOD_MICROSECONDS}"
    condition = "true" if first_period is None else f"{period} >= {first_period}"
    selection = f"SELECT {typed_columns(rows)}, {period} AS period"
    source = f"FROM ({connection.compile(rows)}) WHERE {condition}"
    options = (
        "FORMAT parquet, PARTITION_BY (period), FILENAME_PATTERN 'rows_{uuid}', "
        "RETURN_STATS"
    )
    place = convert(str(folder)).sql()
    copied = connection.raw_sql(f"COPY ({selection} {source}) TO {place} ({options})")
    for file, row_count, size, _, columns, partition in copied.fetchall():
        path = Path(file).relative_to(folder).as_posix()
        file_period = int(partition["period"])
        times = columns['"event_timestamp"']
        earliest = datetime.fromisoformat(times["min"])
        latest = datetime.fromisoformat(times["max"])
        files.append(added_file(path, size, file_period, row_count, earliest, latest))
    table.take_in(folder, [file.path for file in files])
    return files


def typed_columns(rows: ir.Table) -> str:
    """Return the columns of rows in DuckDB's SQL, cast to Ibis's types: DuckDB's sums are wider."""
    columns = []
    for name, column_type in rows.schema().items():
        type_name = DuckDBType.to_string(column_type)
        columns.append(f"CAST({quoted(name)} AS {type_name}) AS {quoted(name)}")
    return ", ".join(columns)

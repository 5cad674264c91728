"""Compute engines of feature views; `GYRE_ENGINE` chooses one.

Both engines run the same Ibis expressions over the same tables: of views, labels, training frames
and lists of entities. DuckDB reads copies on this disk; Spark's executors read and write a table's
own files, also on S3. All else stays on DuckDB: batches, their validation, and the features of an
event's entities.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends.sql.datatypes import DuckDBType
from sqlglot.expressions import convert
from upath import UPath

from core.errors import UncomputableError
from core.settings import Settings
from core.tables.query import quoted
from core.tables.table import AddedFile, Table, added_file

PERIOD = timedelta(days=28)
"""Feature rows are cut into periods of event time."""
PERIOD_MICROSECONDS = PERIOD // timedelta(microseconds=1)
MEMORY_LIMIT = "4GB"
"""Memory of DuckDB; beyond it, DuckDB spills to disk."""
VALUE_ERRORS = (
    duckdb.DataError,
    duckdb.InvalidInputException,
    pa.ArrowInvalid,
    UncomputableError,
)
"""What an expression raises at a value that it cannot take: the last one on Spark."""


def temporary_table(connection: Any, rows: ir.Table) -> ir.Table:
    """Compute `rows` once, into a table that lasts until the connection is closed."""
    name = ibis.util.gen_name("temporary")
    table: ir.Table = connection.create_table(name, rows, temp=True)
    return table


def write_files(
    connection: Any,
    rows: ir.Table,
    table: Table,
    first_period: int | None,
    folder: Path,
) -> list[AddedFile]:
    """Write feature rows as parquet files of a table, which is to commit them.

    Column types are those that Ibis promises, and times are microseconds UTC.

    Args:
        connection: Of the engine.
        rows: Feature rows.
        table: The table of the view, within `writing`.
        first_period: Earliest period to write; None writes all of them.
        folder: Where DuckDB writes them first; it is not there yet.

    """
    files: list[AddedFile] = []
    if connection.name == "pyspark":
        files += connection.write_files(rows, table, first_period)
        return files
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
    """Return the columns of rows in DuckDB's SQL, in the types that Ibis promises.

    DuckDB sums to wider ones.
    """
    columns = []
    for name, column_type in rows.schema().items():
        type_name = DuckDBType.to_string(column_type)
        columns.append(f"CAST({quoted(name)} AS {type_name}) AS {quoted(name)}")
    return ", ".join(columns)


def spark_connection(master: str, scratch: UPath) -> Any:
    """Connect to Spark; see `feature_engine.engines.spark`."""
    from feature_engine.engines import spark  # noqa: PLC0415  (400 MB, a JVM)

    return spark.connect(master, scratch)


@contextmanager
def engine_connection(settings: Settings, spill: Path | None = None) -> Iterator[Any]:
    """Connect to the engine that `settings` name.

    Args:
        settings: Of the installation.
        spill: An empty folder for what exceeds DuckDB's memory, to write a view. Default: none, to
            read tables.

    Raises:
        DataError: PySpark or Java is missing, or Spark does not start.

    """
    if settings.engine == "spark":
        with closing(
            spark_connection(settings.spark_master, settings.scratch)
        ) as connection:
            yield connection
        return
    options: dict[str, Any] = {}
    if spill is not None:
        options = {
            "temp_directory": str(spill),
            "memory_limit": MEMORY_LIMIT,
            "preserve_insertion_order": False,
        }
    with connected(**options) as connection:
        yield connection


def read_files(connection: Any, table: Table, names: Sequence[str]) -> ir.Table:
    """Open some files of a table, one at least, with DuckDB or with Spark."""
    if connection.name == "pyspark":
        rows: ir.Table = connection.read_files(table, names)
    else:
        rows = connection.read_parquet(table.copies(names))
    return rows


@contextmanager
def connected(**config: Any) -> Iterator[Any]:
    """Connect to DuckDB, which Ibis sets to UTC, and close the connection in the end.

    Args:
        **config: DuckDB's own settings.

    """
    connection = ibis.duckdb.connect(**config)
    try:
        yield connection
    finally:
        connection.disconnect()


@contextmanager
def row_connection() -> Iterator[Any]:
    """Connect to a DuckDB of one thread that lasts as long as the process, for a few rows.

    To open a database takes longer than such a query. What a connection makes ends with it.
    """
    connection = ibis.duckdb.from_connection(_row_database().cursor())
    try:
        yield connection
    finally:
        connection.disconnect()


@cache
def _row_database() -> Any:
    # A cache of files would grow, as the database does not end.
    return duckdb.connect(config={"threads": 1, "enable_external_file_cache": False})


def value_error(exc: Exception) -> str:
    """Return what an expression raised, in one line."""
    message, _, _ = str(exc).partition("\nLINE ")  # DuckDB's own query
    return " ".join(message.split())

"""Compute engines of feature views: GYRE_ENGINE chooses DuckDB or Spark.

Both engines run the same Ibis expressions over the same tables: views, labels, training frames and
lists of entities are computed so. DuckDB reads copies on this disk. Spark's executors read and
write a table's own files, also on S3. Everything else is always computed on DuckDB: batches, their
validation, and the features of the entities of an event.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from upath import UPath

from core.errors import UncomputableError
from core.settings import Settings
from core.tables.commits import AddedFile
from core.tables.table import Table
from feature_engine.engines.duckdb_engine import duckdb_connection, write_duckdb_files

VIEW_MEMORY = "4GB"
"""Memory of DuckDB while it computes a view; beyond it, DuckDB spills to disk."""
VALUE_ERRORS = (
    duckdb.DataError,
    duckdb.InvalidInputException,
    pa.ArrowInvalid,
    UncomputableError,
)
"""Errors of an expression at a value that it cannot take; on Spark it is the last of them."""


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

    Columns have the types that Ibis promises, and times are microseconds UTC.

    Args:
        connection: Connection to either engine.
        rows: Feature rows.
        table: The table of the view, within `writing`.
        first_period: Earliest period to write; None writes all of them.
        folder: Folder that DuckDB writes the files to first; it must not exist yet.

    """
    if connection.name == "pyspark":
        files: list[AddedFile] = connection.write_files(rows, table, first_period)
        return files
    return write_duckdb_files(connection, rows, table, first_period, folder)


def spark_connection(master: str, scratch: UPath) -> Any:
    """Connect to Spark; see `feature_engine.engines.spark`."""
    from feature_engine.engines import spark  # noqa: PLC0415  (400 MB, a JVM)

    return spark.connect(master, scratch)


@contextmanager
def engine_connection(settings: Settings, spill: Path | None = None) -> Iterator[Any]:
    """Connect to the engine that `settings` name.

    Args:
        settings: Settings of the installation.
        spill: Empty folder that DuckDB spills to while it computes a view; None to read tables.

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
            "memory_limit": VIEW_MEMORY,
            "preserve_insertion_order": False,
        }
    with duckdb_connection(**options) as connection:
        yield connection


def read_files(connection: Any, table: Table, names: Sequence[str]) -> ir.Table:
    """Open files of a table with either engine; only a table with a schema may have none."""
    rows: ir.Table
    if not names:
        rows = ibis.memtable(table.schema.empty_table())
    elif connection.name == "pyspark":
        rows = connection.read_files(table, names)
    else:
        rows = connection.read_parquet(table.copies(names))
    return rows


def value_error(exc: Exception) -> str:
    """Return the message of one of VALUE_ERRORS in one line."""
    message, _, _ = str(exc).partition("\nLINE ")  # DuckDB's own query
    return " ".join(message.split())

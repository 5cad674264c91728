"""Tables that a team keeps: Gyre reads them, and never writes."""

import os
from glob import has_magic
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from core.connectors.addresses import is_url
from core.connectors.reading import parts_of, read, reading
from core.errors import DataError
from core.project import PROJECT

UTC_MICROSECONDS = "timestamp('UTC', 6)"
"""Type of times that Feast's DuckDB store wants."""


def utc_time(rows: ir.Table, name: str) -> ir.Value:
    """Return a column of times in UTC; a time without a zone is UTC, as Feast reads it.

    Raises:
        DataError: The column has no times.

    """
    column_type = rows[name].type()
    if not (column_type.is_timestamp() or column_type.is_date()):
        raise DataError(f"table: {name}: expected times, found {column_type}")
    return rows[name].cast(UTC_MICROSECONDS)


def open_table(connection: Any, source: str) -> ir.Table:
    """Open the rows of a table; DuckDB reads them.

    Args:
        connection: Ibis' connection to a DuckDB.
        source: See `source` of `[label]`; a relative path begins at the project.

    Raises:
        DataError: There is no such table, or it cannot be read.

    """
    # A spec, which many people read, names a variable in place of a password.
    address = os.path.expandvars(source) if is_url(source) else str(PROJECT / source)
    (first_part, *more_parts) = parts_of(address)
    # DuckDB gives all files the types of the first one, and takes a name for a pattern.
    is_one_file = not more_parts and Path(first_part).is_file()
    if is_one_file and first_part.endswith(".parquet") and not has_magic(first_part):
        with reading(address):
            return connection.read_parquet(first_part, hive_partitioning=False)
    return ibis.memtable(read(address))

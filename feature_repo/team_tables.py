"""Tables that a team keeps: Gyre reads them, and never writes."""

from typing import Any

import ibis
import ibis.expr.types as ir

from core.errors import DataError
from core.project import PROJECT
from core.tables.addresses import is_url, rows_at, shown_address

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

    Raises:
        DataError: There is no such table.

    """
    shown = shown_address(source)
    try:
        if is_url(source):
            address, _, table = source.rpartition("#")
            database = ibis.connect(address)
            try:  # DuckDB joins: a team's database is only read
                rows = database.table(table).to_pyarrow()
            finally:
                database.disconnect()
            return ibis.memtable(rows)
        path = PROJECT / source
        if (path / "_delta_log").is_dir():
            return ibis.memtable(rows_at(str(path), None, None).read_all())
        pattern = str(path / "**" / "*.parquet") if path.is_dir() else str(path)
        return connection.read_parquet(pattern)
    except Exception as exc:  # every reader fails in its own way
        reason = " ".join(str(exc).split())[:200]
        if is_url(source):
            reason = type(exc).__name__  # the text may have the password
        expected = "parquet files, a Delta table, or an Ibis address and #table"
        raise DataError(f"table {shown}: expected {expected}: {reason}") from exc

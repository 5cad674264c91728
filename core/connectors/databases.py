"""Tables and queries of databases, by Ibis."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.common.exceptions import TableNotFound
from ibis.expr.datatypes import Timestamp
from ibis.selectors import across, of_type

from core.connectors.formats import READ_ROWS, Later
from core.errors import DataError
from core.project import PROJECT

MYSQL = ("mysql://", "mariadb://")
QUERY_ENDING = ".sql"
TYPES_OF_QUERY = {
    "postgres": "CREATE OR REPLACE TEMP VIEW gyre_query AS {}",
    "mysql": "CREATE TEMPORARY TABLE gyre_query SELECT * FROM ({}) AS rows_of_query LIMIT 0",
}
"""Backend of Ibis → statement that shows a query's types: Ibis 12's own fails with these drivers."""


class DatabaseRows(NamedTuple):
    """Rows of a database, and the names of columns whose times are texts."""

    rows: pa.RecordBatchReader
    texts: list[str]


@contextmanager
def open_database(address: str, later: Later | None) -> Iterator[DatabaseRows]:
    """Open a table, or the rows of a query.

    Args:
        address: Ibis' address of a database, `#` and a table (`table`, `schema.table`), or a file
            with a query that ends in `.sql`, whose relative path begins at the project.
        later: The database itself leaves out earlier rows.

    Raises:
        DataError: There is no such table, or the address names none.

    """
    url, _, name = address.rpartition("#")
    if not url:
        raise DataError(
            "expected a table behind the address (#table), or a query (#query.sql)"
        )
    connection = _connection(url)
    try:
        rows = _table(connection, name)
        if later and later.column in rows.columns:
            rows = later_rows(rows, later)
        texts: list[str] = []
        if connection.name in ("postgres", "mysql"):
            rows, texts = _with_texts(connection, rows)
        elif connection.name == "snowflake":
            rows = rows.mutate(across(of_type(Timestamp), _in_microseconds))
        yield DatabaseRows(_batches(connection, rows), texts)
    finally:
        connection.disconnect()


def later_rows(rows: ir.Table, later: Later) -> ir.Table:
    """Return the rows later than a moment, and those without a time."""
    time = rows[later.column]
    kind = time.type()
    if kind.is_timestamp():
        limit = later.limit(has_zone=kind.timezone is not None)
        return rows.filter((time > limit) | time.isnull())
    if kind.is_date():
        return rows.filter((time >= later.moment.date()) | time.isnull())
    return rows


def _connection(url: str) -> Any:
    file = url.removeprefix("duckdb://")
    if Path(file).is_file():  # its name is a path, whatever it would mean in an address
        return ibis.duckdb.connect(file, read_only=True)
    if url.startswith("snowflake://"):  # Ibis would create a database of its own there
        return ibis.connect(url, create_object_udfs=False)
    if not url.startswith(MYSQL):
        return ibis.connect(url)
    import pymysql  # noqa: PLC0415  (an extra)

    if "MySQLdb" not in sys.modules:
        pymysql.install_as_MySQLdb()  # Ibis asks for a driver that must be compiled
    _, _, place = url.partition("://")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ibis' own "UTC" may be missing in the server
        connection = ibis.connect(f"mysql://{place}", charset="utf8mb4")
    with connection.con.cursor() as cursor:
        cursor.execute("SET time_zone = '+00:00'")
    return connection


def _table(connection: Any, name: str) -> ir.Table:
    if name.endswith(QUERY_ENDING):
        text = (PROJECT / name).read_text(encoding="utf-8")
        return _query(connection, text.strip().rstrip(";"))
    schema, _, table = name.rpartition(".")
    if schema:
        with suppress(TableNotFound):
            return connection.table(table, database=schema)
    try:
        return connection.table(name)
    except TableNotFound as exc:
        raise DataError(f"expected a table, found no {name}") from exc


def _query(connection: Any, query: str) -> ir.Table:
    """Return the rows of a query; its types come from an object that ends with the connection."""
    statement = TYPES_OF_QUERY.get(connection.name)
    if statement is None:
        return connection.sql(query)
    with connection.con.cursor() as cursor:
        cursor.execute(statement.format(query))
    return connection.sql(query, schema=connection.table("gyre_query").schema())


def _with_texts(connection: Any, rows: ir.Table) -> tuple[ir.Table, list[str]]:
    """Return rows whose times are texts: the clients fail at years that Python does not have."""
    if connection.name == "postgres":
        connection.con.execute("SET TIME ZONE 'UTC'")
    texts = {}
    for name, kind in rows.schema().items():
        if kind.is_timestamp():
            text = rows[name].cast("string")
            is_utc = connection.name == "mysql" and kind.timezone is not None
            texts[name] = text + "Z" if is_utc else text
    return rows.mutate(texts), [*texts]


def _in_microseconds(time: ir.Value) -> ir.Value:
    """Return times that may be of any year: those of nanoseconds end in 2262."""
    return time.cast(time.type().copy(scale=6))


def _batches(connection: Any, rows: ir.Table) -> pa.RecordBatchReader:
    if connection.name != "mysql":
        return connection.to_pyarrow_batches(rows, chunk_size=READ_ROWS)
    # Ibis' own way makes doubles of whole numbers beside a null, and holds all rows.
    schema = rows.schema().to_pyarrow()
    query = connection.compile(rows)
    batches = _mysql_batches(connection.con, query, pa.struct([*schema]))
    return pa.RecordBatchReader.from_batches(schema, batches)


def _mysql_batches(
    client: Any, query: str, row_type: pa.StructType
) -> Iterator[pa.RecordBatch]:
    import pymysql.cursors  # noqa: PLC0415  (an extra)

    with client.cursor(pymysql.cursors.SSCursor) as cursor:
        cursor.execute(query)
        rows = cursor.fetchmany(READ_ROWS)
        while rows:
            yield pa.RecordBatch.from_struct_array(pa.array(rows, row_type))
            rows = cursor.fetchmany(READ_ROWS)

"""Tables and queries of databases: those of three kinds by their own clients, others by Ibis."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.common.exceptions import TableNotFound
from ibis.expr.datatypes import Timestamp
from ibis.selectors import across, of_type
from sqlglot import TokenType, tokenize
from sqlglot.errors import TokenError

from core.connectors import mysql, postgresql, sqlite
from core.connectors.formats import READ_ROWS, Later, Rows
from core.errors import DataError
from core.project import PROJECT

MYSQL = ("mysql://", "mariadb://")
SQLITE = "sqlite://"
QUERY_ENDING = ".sql"
TYPES_OF_DUCKDB = """
SELECT column_name, data_type FROM duckdb_columns()
WHERE schema_name = coalesce(nullif($1, ''), current_schema()) AND table_name = $2
"""
UNKNOWN_TO_IBIS = (
    "BIGNUM", "BIT", "GEOMETRY", "TIME_NS", "UHUGEINT", "UNION", "VARIANT",
)  # fmt: skip
"""Types of DuckDB; for one of them, Ibis would also load an extension from the network."""


class Client(NamedTuple):
    """How rows of a kind of database are read; Ibis loses values of these kinds.

    Attributes:
        find_table: Returns SQL that names a table of a schema, or None.
        open_table: Opens the rows of a table that `find_table` returned.
        open_query: Opens the rows of SQL that stands behind `FROM`.

    """

    find_table: Callable[[Any, str, str], str | None]
    open_table: Callable[[Any, str, Later | None], Rows]
    open_query: Callable[[Any, str, Later | None], Rows]


CLIENTS = {
    "postgres": Client(
        postgresql.find_table, postgresql.open_selection, postgresql.open_selection
    ),
    "mysql": Client(mysql.find_table, mysql.open_table, mysql.open_query),
    "sqlite": Client(sqlite.find_table, sqlite.open_selection, sqlite.open_selection),
}
"""By the names that Ibis and SQLGlot have for the kinds."""


@contextmanager
def open_database(address: str, later: Later | None) -> Iterator[Rows]:
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
    if url.startswith(SQLITE):
        file = Path(url.removeprefix(SQLITE))
        with closing(sqlite.connect(file)) as client:
            yield _rows("sqlite", client, name, later)
        return
    connection = _connection(url)
    try:
        if connection.name in CLIENTS:
            yield _rows(connection.name, connection.con, name, later)
        else:
            yield _rows_by_ibis(connection, name, later)
    finally:
        connection.disconnect()


def _rows(kind: str, client: Any, name: str, later: Later | None) -> Rows:
    functions = CLIENTS[kind]
    if name.endswith(QUERY_ENDING):
        query = _query(name, kind)
        return functions.open_query(client, f"(\n{query}\n) AS gyre_rows", later)
    schema, _, table = name.rpartition(".")
    table_sql = functions.find_table(client, schema, table)
    if table_sql is None and schema:
        table_sql = functions.find_table(client, "", name)
    if table_sql is None:
        raise DataError(f"expected a table, found no {name}")
    return functions.open_table(client, table_sql, later)


def _query(file: str, dialect: str) -> str:
    """Return the query of a file as it is, without what ends it.

    Raises:
        DataError: There are several.

    """
    text = (PROJECT / file).read_text(encoding="utf-8-sig").strip()
    try:
        tokens = tokenize(text, read=dialect)
    except (TokenError, ValueError):  # the database knows the dialect better
        return text.rstrip(";")
    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        end = tokens.pop()
        text = text[: end.start] + text[end.end + 1 :]
    if any(token.token_type == TokenType.SEMICOLON for token in tokens):
        raise DataError(f"{file}: expected one query, found several")
    return text


def _rows_by_ibis(connection: Any, name: str, later: Later | None) -> Rows:
    rows = _table(connection, name)
    if later and later.column in rows.columns:
        rows = later_rows(rows, later)
    if connection.name == "snowflake":
        rows = rows.mutate(across(of_type(Timestamp), _in_microseconds))
    batches = connection.to_pyarrow_batches(rows, chunk_size=READ_ROWS)
    # Of an enumeration, DuckDB gives other types than Ibis says.
    typed_batches = (batch.cast(batches.schema) for batch in batches)
    return Rows(pa.RecordBatchReader.from_batches(batches.schema, typed_batches))


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
        query = _query(name, connection.name)
        if connection.name != "duckdb":
            return connection.sql(f"SELECT * FROM (\n{query}\n) AS gyre_rows")  # noqa: S608
        # Ibis would write the query anew.
        connection.raw_sql(f"CREATE TEMP VIEW gyre_query AS\n{query}")
        name = "gyre_query"
    schema, _, table = name.rpartition(".")
    if connection.name == "duckdb":
        for place in {(schema, table), ("", name)}:
            _require_known_types(connection, *place)
    if schema:
        with suppress(TableNotFound):
            return connection.table(table, database=schema)
    try:
        return connection.table(name)
    except TableNotFound as exc:
        raise DataError(f"expected a table, found no {name}") from exc


def _require_known_types(connection: Any, schema: str, table: str) -> None:
    """Refuse a column of DuckDB whose values Ibis would give as bytes of another type.

    Raises:
        DataError: There is one.

    """
    columns = connection.con.execute(TYPES_OF_DUCKDB, [schema, table]).fetchall()
    for name, declared in columns:
        if declared.startswith(UNKNOWN_TO_IBIS):
            raise DataError(
                f"column {name}: its type {declared} is not known: cast it in a query, "
                f"such as CAST({sqlite.quoted(name)} AS VARCHAR)"
            )


def _in_microseconds(time: ir.Value) -> ir.Value:
    """Return times that may be of any year: those of nanoseconds end in 2262."""
    return time.cast(time.type().copy(scale=6))

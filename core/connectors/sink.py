"""Tables and files of a team that Gyre writes: rows of a model are replaced by the day.

A day is replaced in one transaction of a database, one commit of Delta Lake or Iceberg, or one file.
A writer that is killed leaves the earlier rows, and repeating a write changes nothing.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any
from warnings import catch_warnings

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sql
from deltalake import DeltaTable, write_deltalake
from pyarrow import csv
from sqlalchemy.dialects import mysql, postgresql

from core.connectors.addresses import (
    BUCKETS,
    ICEBERG,
    is_url,
    shown_address,
    without_secrets,
)
from core.connectors.iceberg import catalog_and_name
from core.connectors.postgresql import quoted
from core.connectors.texts import TIME
from core.errors import DataError, GyreError
from core.files import location, read_file, replace_file
from core.locks import one_writer
from core.packages import missing_client
from core.project import PROJECT
from core.settings import Settings
from core.tables.query import S3

SQL_TYPES: dict[pa.DataType, sql.types.TypeEngine[Any]] = {
    pa.string(): sql.Text(),
    pa.int64(): sql.BigInteger(),
    pa.float64(): sql.Double(),
    pa.date32(): sql.Date(),
    # MySQL has no time with a zone: it is UTC there.
    TIME: sql.DateTime(timezone=True).with_variant(
        mysql.DATETIME(fsp=6), "mysql", "mariadb"
    ),
}
"""Types of the columns that rows may have."""
ALSO_TAKEN = {"String": "Text", "Integer": "BigInteger"}
"""Types of SQL that a team's table may have, and the type in whose place they stand."""
DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
"""Drivers of SQLAlchemy, by the scheme of an address."""
MYSQL = ("mysql", "mariadb")
"""Beginnings of the drivers of MySQL."""
MICROSECONDS = 6
"""Decimals of a second."""
DELTA = "#delta"
"""End of the address of a Delta table; without it the address is a folder of files."""
STRICT = "SET time_zone = '+00:00', sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"
"""Statement by which MySQL refuses a value that a column does not hold, instead of changing it."""
BATCH_ROWS = 10_000
"""Rows that become Python's objects at a time."""
FORMS = "postgresql://…#table, mysql://…#table, iceberg://CATALOG#namespace.table, s3://…, a folder"


def replace_days(
    settings: Settings,
    address: str,
    rows: pa.Table,
    model: str,
    days: Sequence[date],
) -> None:
    """Replace all rows of a model and some days; make the table if there is none.

    Args:
        settings: Settings of the installation.
        address: Address of the table; `$NAME` in it is a variable of the environment.
        rows: Rows of the model and these days, with columns `model`, `day` and others of SQL_TYPES.
        model: Name of the model.
        days: The days.

    Raises:
        DataError: A variable is not set, or the address cannot be reached or has a table of other
            columns. Nothing was changed.

    """
    for variable in re.findall(r"\$\{?(\w+)", address):
        if variable not in os.environ:
            shown = shown_address(address)
            raise DataError(f"{shown}: expected the variable {variable} to be set")
    target = os.path.expandvars(address)
    scheme = target.partition("://")[0] if is_url(target) else ""
    with _write_errors(address, target), one_writer(settings, f"sinks/{model}"):
        if scheme in DRIVERS:
            _write_to_database(target, rows, model, days)
        elif scheme == ICEBERG:
            _write_to_iceberg(target, rows, model, days)
        elif scheme not in {"", *BUCKETS}:
            raise DataError(f"expected {FORMS}")
        elif target.endswith(DELTA):
            _write_to_delta(_place(target.removesuffix(DELTA)), rows, model, days)
        else:
            _write_files(_place(target), rows, model, days)


@contextmanager
def _write_errors(address: str, target: str) -> Iterator[None]:
    """Raise a DataError that names the address, without passwords."""
    shown = shown_address(address)
    try:
        yield
    except ModuleNotFoundError as exc:
        raise DataError(f"{shown}: {missing_client(exc)}") from exc
    except Exception as exc:  # every writer fails in its own way
        error = exc if isinstance(exc, GyreError) else getattr(exc, "orig", exc)
        text = " ".join(str(error).split())
        problem = without_secrets(text, target)
        raise DataError(f"{shown}: nothing was changed: {problem}") from exc


def _place(address: str) -> str:
    """Return the address of a folder; a relative path begins at the project."""
    return address if is_url(address) else str(PROJECT / address)


def _require_columns(expected: Mapping[str, str], stored: Mapping[str, str]) -> None:
    """Refuse a table of other columns.

    Raises:
        DataError: Its columns have other names or types.

    """
    if expected != stored:
        raise DataError(
            f"expected a table with the columns {_listed(expected)}, found {_listed(stored)}: "
            "name another table, or remove this one"
        )


def _require_schema(expected: pa.Schema, stored: pa.Schema) -> None:
    _require_columns(_arrow_types(expected), _arrow_types(stored))


def _listed(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items())


def _arrow_types(schema: pa.Schema) -> dict[str, str]:
    """Return types by name; texts of any width have one type."""
    types = {field.name: str(field.type) for field in schema}
    for name, kind in types.items():
        types[name] = kind.removeprefix("large_").removesuffix("_view")
    return dict(sorted(types.items()))


def _condition(model: str, days: Sequence[date]) -> str:
    """Return SQL for the rows of a model and some days."""
    listed_days = ", ".join(f"'{day}'" for day in days)
    return f"model = '{model}' AND day IN ({listed_days})"


def _write_to_database(
    address: str, rows: pa.Table, model: str, days: Sequence[date]
) -> None:
    url, _, name = address.rpartition("#")
    scheme, _, server = url.partition("://")
    schema, _, table_name = name.rpartition(".")
    columns = [
        sql.Column(field.name, SQL_TYPES[field.type], index=field.name == "day")
        for field in rows.schema
    ]
    table = sql.Table(table_name, sql.MetaData(), *columns, schema=schema or None)
    is_replaced = (table.c.model == model) & table.c.day.in_(days)
    driver = DRIVERS[scheme]
    is_mysql = driver.startswith(MYSQL)
    if is_mysql:
        _require_different_names(rows.schema, "MySQL")
    engine = sql.create_engine(f"{driver}://{server}")
    try:
        with engine.begin() as connection:
            if is_mysql:
                connection.exec_driver_sql(STRICT)
            table.create(connection, checkfirst=True)
            _require_sql_columns(connection, table)
            connection.execute(table.delete().where(is_replaced))
            _insert(connection, table, rows)
    finally:
        engine.dispose()


def _require_different_names(schema: pa.Schema, place: str) -> None:
    """Refuse columns that differ by capitals alone.

    Raises:
        DataError: A key is called `Version` or `Day`, beside `version` and `day`.

    """
    names: dict[str, str] = {}
    for name in schema.names:
        other = names.setdefault(name.lower(), name)
        if other != name:
            raise DataError(
                f"expected columns that differ by more than capitals, found {other} and {name}: "
                f"{place} takes them for one; name a table of PostgreSQL or Iceberg, or files"
            )


def _require_sql_columns(connection: sql.Connection, table: sql.Table) -> None:
    expected = {column.name: type(column.type).__name__ for column in table.columns}
    stored = {}
    for column in sql.inspect(connection).get_columns(table.name, schema=table.schema):
        stored[column["name"]] = _sql_type(column["type"])
    _require_columns(expected, stored)


def _sql_type(kind: sql.types.TypeEngine[Any]) -> str:
    """Return the type of SQL_TYPES that holds the same values, or another word."""
    generic = kind.as_generic(allow_nulltype=True)
    name = type(generic).__name__
    name = ALSO_TAKEN.get(name, name)
    decimals = getattr(kind, "fsp", 0) or 0
    if isinstance(kind, sql.CHAR):
        return f"CHAR({kind.length}), which adds blanks"
    if isinstance(kind, mysql.DOUBLE) and kind.scale is not None:
        return f"{name} of {kind.scale} decimals"
    if isinstance(kind, postgresql.TIMESTAMP):
        if not kind.timezone:
            return f"{name} without a zone"
        decimals = MICROSECONDS if kind.precision is None else kind.precision
    if isinstance(generic, sql.DateTime) and decimals != MICROSECONDS:
        return f"{name} of {decimals} decimals"
    return name


def _insert(connection: sql.Connection, table: sql.Table, rows: pa.Table) -> None:
    batches = rows.to_batches(max_chunksize=BATCH_ROWS)
    if connection.dialect.name != "postgresql":
        for batch in batches:
            connection.execute(table.insert(), batch.to_pylist())
        return
    # SQLAlchemy would double a percent sign.
    names = ", ".join(quoted(column.name) for column in table.columns)
    place = quoted(table.name)
    if table.schema:
        place = f"{quoted(table.schema)}.{place}"
    statement = f"COPY {place} ({names}) FROM STDIN (FORMAT csv)"
    cursor = connection.connection.cursor()
    with cursor.copy(statement) as copy:  # many times as fast as INSERT
        for batch in batches:
            content = pa.BufferOutputStream()
            csv.write_csv(batch, content, csv.WriteOptions(include_header=False))
            copy.write(content.getvalue().to_pybytes())


def _write_to_delta(
    address: str, rows: pa.Table, model: str, days: Sequence[date]
) -> None:
    _require_different_names(rows.schema, "Delta Lake")
    exists = DeltaTable.is_deltatable(address, S3)
    if exists:
        table = DeltaTable(address, storage_options=S3)
        stored_schema = pa.schema(table.schema().to_arrow())
        _require_schema(rows.schema, stored_schema)
    write_deltalake(
        address,
        rows,
        mode="overwrite",
        partition_by=None if exists else ["model", "day"],
        predicate=_condition(model, days) if exists else None,
        storage_options=S3,
    )


def _write_to_iceberg(
    address: str, rows: pa.Table, model: str, days: Sequence[date]
) -> None:
    catalog, name = catalog_and_name(address)
    catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
    table = catalog.create_table_if_not_exists(name, rows.schema)
    stored_schema = table.schema().as_arrow()
    _require_schema(rows.schema, stored_schema)
    with catch_warnings(action="ignore"):  # that there is no row to replace
        table.overwrite(rows, _condition(model, days))


def _write_files(
    address: str, rows: pa.Table, model: str, days: Sequence[date]
) -> None:
    """Write `model=NAME/day=DAY.parquet`; the folder's name is the column `model`."""
    folder = location(address) / f"model={model}"
    rows = rows.drop_columns("model")
    for file in [*folder.glob("day=*.parquet")][:1]:
        stored_schema = pq.read_schema(pa.BufferReader(read_file(file)))
        _require_schema(rows.schema, stored_schema)
    for day in days:
        content = pa.BufferOutputStream()
        pq.write_table(rows.filter(pc.field("day") == day), content)
        replace_file(folder / f"day={day}.parquet", content.getvalue().to_pybytes())

"""Rows of MySQL and MariaDB, every type of them in a way that loses nothing."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from core.connectors.formats import READ_ROWS, Later, Rows, require_names
from core.connectors.texts import TIME
from core.errors import DataError

NO_TABLE = 1146
"""The server's number of the error that there is no such table."""
NO_DATABASE = 1049
DENIED = 1044
"""The server's number of the error that a user may not do something in a database."""
DECLARED = re.compile(r"(?P<type>\w+)(?:\((?P<length>\d+)(?:,(?P<scale>\d+))?\))?")
INTEGERS = {
    "tinyint": (pa.int8(), pa.uint8()),
    "smallint": (pa.int16(), pa.uint16()),
    "mediumint": (pa.int32(), pa.uint32()),
    "int": (pa.int32(), pa.uint32()),
    "bigint": (pa.int64(), pa.uint64()),
}
"""Type of the server → types of Arrow with a sign and without."""
NATIVE = {
    "bit": pa.uint64(),
    "year": pa.int16(),
    "float": pa.float32(),
    "double": pa.float64(),
    "char": pa.string(),
    "varchar": pa.string(),
    "tinytext": pa.string(),
    "text": pa.string(),
    "mediumtext": pa.string(),
    "longtext": pa.string(),
    "enum": pa.string(),
    "set": pa.string(),
    "json": pa.string(),
    "time": pa.string(),
    "uuid": pa.string(),
    "inet4": pa.string(),
    "inet6": pa.string(),
    "binary": pa.binary(),
    "varbinary": pa.binary(),
    "tinyblob": pa.binary(),
    "blob": pa.binary(),
    "mediumblob": pa.binary(),
    "longblob": pa.binary(),
    "geometry": pa.binary(),
    "point": pa.binary(),
    "linestring": pa.binary(),
    "polygon": pa.binary(),
    "multipoint": pa.binary(),
    "multilinestring": pa.binary(),
    "multipolygon": pa.binary(),
    "geometrycollection": pa.binary(),
    "geomcollection": pa.binary(),
    "vector": pa.binary(),
}
"""Type of the server → type of Arrow that holds all its values."""
JUDGED = {
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": TIME,
}
"""Type of the server → what its texts stand for; Arrow does not hold all its values."""
SELECTED = {
    "bit": "{} + 0",
    # As texts, which is how rows come, they would have six digits.
    "float": "{} * 1e0",
    "double": "{} * 1e0",
    "date": "CAST({} AS CHAR)",
    "datetime": "CAST({} AS CHAR)",
    "timestamp": "CONCAT(CAST({} AS CHAR), 'Z')",
    "time": "CAST({} AS CHAR)",
    "json": "CAST({} AS CHAR)",
    "uuid": "CAST({} AS CHAR)",
    "inet4": "CAST({} AS CHAR)",
    "inet6": "CAST({} AS CHAR)",
}
"""Type of the server → SQL for the values of a column."""
# The sum has no ZEROFILL, and texts are read exactly: Arrow's decimals become doubles inexactly.
DECIMAL = "CAST({} + 0 AS CHAR)"
TRIMMED = f"TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {DECIMAL}))"
TYPES_OF_QUERY = "CREATE TEMPORARY TABLE gyre_query SELECT * FROM {} LIMIT 0"
"""Statement that shows the types of a query; the answer to a query has less of them."""


class Column(NamedTuple):
    """A column of a selection.

    Attributes:
        name: Its name.
        declared: Its type, as the server writes it: `decimal(10,2) unsigned`.

    """

    name: str
    declared: str

    @property
    def type(self) -> str:
        """The type's name alone."""
        match = DECLARED.match(self.declared)
        return match["type"] if match else self.declared

    def scale(self) -> int:
        """Return the number of decimals."""
        match = DECLARED.match(self.declared)
        return int(match["scale"] or 0) if match else 0

    def judged(self) -> pa.DataType | None:
        """Return the type that its texts stand for; None: they are what they are."""
        if self.type == "decimal":
            return pa.float64() if self.scale() else pa.int64()
        return JUDGED.get(self.type)

    def arrow_type(self) -> pa.DataType:
        """Return the type in which its values come.

        Raises:
            DataError: The type is not known.

        """
        if self.judged():
            return pa.string()
        if self.type in INTEGERS:
            signed, unsigned = INTEGERS[self.type]
            return unsigned if "unsigned" in self.declared else signed
        if self.type not in NATIVE:
            raise DataError(
                f"column {self.name}: its type {self.declared} is not known: cast it in a query, "
                f"such as CAST({quoted(self.name)} AS CHAR)"
            )
        return NATIVE[self.type]

    def selected(self) -> str:
        """Return SQL for its values."""
        if self.type == "decimal":
            values = TRIMMED if self.scale() else DECIMAL
        else:
            values = SELECTED.get(self.type, "{}")
        return values.format(quoted(self.name))


def find_table(client: Any, schema: str, table: str) -> str | None:
    """Return SQL that names a table; None if there is none."""
    import pymysql  # noqa: PLC0415  (an extra)

    name = quoted(table)
    if schema:
        name = f"{quoted(schema)}.{name}"
    try:
        _columns(client, name)
    except pymysql.MySQLError as exc:
        if exc.args[0] in {NO_TABLE, NO_DATABASE}:
            return None
        raise
    return name


def open_table(client: Any, name: str, later: Later | None) -> Rows:
    """Open the rows of a table that `find_table` returned."""
    return _open(client, name, _columns(client, name), later)


def open_query(client: Any, selection: str, later: Later | None) -> Rows:
    """Open the rows of a query.

    Args:
        client: Connection of pymysql.
        selection: SQL that stands behind `FROM`.
        later: The server leaves out earlier rows.

    Raises:
        DataError: The user may make no temporary table, which shows the types of the query.

    """
    import pymysql  # noqa: PLC0415  (an extra)

    try:
        with client.cursor() as cursor:
            cursor.execute(TYPES_OF_QUERY.format(selection))
    except pymysql.MySQLError as exc:
        if exc.args[0] != DENIED:
            raise
        raise DataError(
            "the user may make no temporary table, which shows the types of a query: "
            "GRANT CREATE TEMPORARY TABLES on the database to the user, or name a table or a view "
            f"(#TABLE) in place of the query: {exc.args[1]}"
        ) from exc
    return _open(client, selection, _columns(client, "gyre_query"), later)


def quoted(name: str) -> str:
    """Return a name as SQL has it, whatever is in it."""
    return "`" + name.replace("`", "``") + "`"


def _columns(client: Any, table: str) -> list[Column]:
    with client.cursor() as cursor:
        cursor.execute(f"SHOW COLUMNS FROM {table}")
        return [Column(name, declared.lower()) for name, declared, *_ in cursor]


def _open(
    client: Any, selection: str, columns: list[Column], later: Later | None
) -> Rows:
    require_names([column.name for column in columns])
    schema = pa.schema([(column.name, column.arrow_type()) for column in columns])
    selected = ", ".join(column.selected() for column in columns)
    query = f"SELECT {selected} FROM {selection}"  # noqa: S608
    for column in columns:
        if later and column.name == later.column:
            query += _condition(column, later)
    types = {column.name: column.judged() for column in columns}
    judged = {name: kind for name, kind in types.items() if kind}
    batches = _batches(client, query, schema)
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    return Rows(reader, texts=judged.keys(), types=judged)


def _condition(column: Column, later: Later) -> str:
    """Return SQL for the rows later than a moment, and those without a time."""
    name = quoted(column.name)
    if column.type == "date":
        return f" WHERE {name} >= '{later.moment.date()}' OR {name} IS NULL"
    if column.type in {"datetime", "timestamp"}:
        limit = later.limit(has_zone=column.type == "timestamp").replace(tzinfo=None)
        return f" WHERE {name} > '{limit.isoformat(' ')}' OR {name} IS NULL"
    return ""


def _batches(client: Any, query: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pymysql.cursors  # noqa: PLC0415  (an extra)

    row_type = pa.struct([*schema])
    with client.cursor(pymysql.cursors.SSCursor) as cursor:
        cursor.execute(query)
        rows = cursor.fetchmany(READ_ROWS)
        while rows:
            yield pa.RecordBatch.from_struct_array(pa.array(rows, row_type))
            rows = cursor.fetchmany(READ_ROWS)

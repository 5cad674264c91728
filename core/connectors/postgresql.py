"""Rows of PostgreSQL, every type of it in a way that loses nothing."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from core.connectors.formats import READ_ROWS, Later, Rows, require_names
from core.connectors.texts import TIME

SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
}
"""How the server writes values, whatever the database or the user has set."""
NATIVE = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "bytea": pa.binary(),
}
"""Type of the server → type of Arrow that holds all its values."""
JUDGED = {
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": TIME,
    "money": pa.float64(),
    "oid": pa.int64(),
    "xid": pa.int64(),
    "xid8": pa.int64(),
    "cid": pa.int64(),
}
"""Type of the server → what its texts stand for; Arrow does not hold all its values."""
NUMERIC = "numeric"


class Column(NamedTuple):
    """A column of a selection.

    Attributes:
        name: Its name.
        number: Number of its type; of a domain, that of the type below.
        type: Name of that type.
        is_whole: Whether its numbers are declared without decimals.

    """

    name: str
    number: int
    type: str
    is_whole: bool

    def declared(self) -> pa.DataType | None:
        """Return the type that its texts stand for; None: they are what they are."""
        if self.type == NUMERIC:
            return pa.int64() if self.is_whole else pa.float64()
        return JUDGED.get(self.type)

    def selected(self) -> str:
        """Return SQL for its values."""
        name = quoted(self.name)
        if self.type == NUMERIC:
            return f"trim_scale({name})::text"
        if self.type == "money":  # as text it has the currency
            return f"trim_scale({name}::numeric)::text"
        return name


def find_table(client: Any, schema: str, table: str) -> str | None:
    """Return SQL that names a table; None if there is none."""
    name = quoted(table)
    if schema:
        name = f"{quoted(schema)}.{name}"
    (is_there,) = client.execute("SELECT to_regclass(%s)", [name]).fetchone()
    return name if is_there else None


def open_selection(client: Any, selection: str, later: Later | None) -> Rows:
    """Open the rows of a table or a query.

    What Arrow has no type for comes as the text that the server writes.

    Args:
        client: Connection of psycopg.
        selection: SQL that stands behind `FROM`.
        later: The server leaves out earlier rows.

    """
    from psycopg.types.string import TextLoader  # noqa: PLC0415  (an extra)

    for name, value in SETTINGS.items():
        client.execute("SELECT set_config(%s, %s, false)", [name, value])
    columns = _columns(client, selection)
    require_names([column.name for column in columns])
    selected = ", ".join(column.selected() for column in columns)
    query = f"SELECT {selected} FROM {selection}"  # noqa: S608
    for column in columns:
        if later and column.name == later.column:
            query += _condition(column, later)
    schema = pa.schema(
        [(column.name, NATIVE.get(column.type, pa.string())) for column in columns]
    )
    types = {column.name: column.declared() for column in columns}
    judged = {name: kind for name, kind in types.items() if kind}
    for column in columns:
        if column.type not in NATIVE:
            client.adapters.register_loader(column.number, TextLoader)
    batches = _batches(client, query, schema)
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    return Rows(reader, texts=judged.keys(), types=judged)


def quoted(name: str) -> str:
    """Return a name as SQL has it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _columns(client: Any, selection: str) -> list[Column]:
    described = client.execute(f"SELECT * FROM {selection} LIMIT 0").description  # noqa: S608
    numbers = [column.type_code for column in described]
    query = "SELECT oid, typname FROM pg_type WHERE oid = ANY(%s)"
    names = dict(client.execute(query, [numbers]).fetchall())
    return [
        Column(
            name=column.name,
            number=column.type_code,
            type=names[column.type_code],
            is_whole=column.precision is not None and column.scale == 0,
        )
        for column in described
    ]


def _condition(column: Column, later: Later) -> str:
    """Return SQL for the rows later than a moment, and those without a time."""
    name = quoted(column.name)
    if column.type == "date":
        return f" WHERE {name} >= '{later.moment.date()}' OR {name} IS NULL"
    if column.type in {"timestamp", "timestamptz"}:
        limit = later.limit(has_zone=column.type == "timestamptz")
        return f" WHERE {name} > '{limit.isoformat()}' OR {name} IS NULL"
    return ""


def _batches(client: Any, query: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    row_type = pa.struct([*schema])
    with client.transaction(), client.cursor(name="gyre_rows") as cursor:
        cursor.execute(query)
        rows = cursor.fetchmany(READ_ROWS)
        while rows:
            yield pa.RecordBatch.from_struct_array(pa.array(rows, row_type))
            rows = cursor.fetchmany(READ_ROWS)

"""Rows of SQLite, which holds any value in any column, whatever type it declares."""

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.connectors.formats import READ_ROWS, Later, Rows, require_names
from core.connectors.texts import EXACT_DOUBLE, TIME
from core.errors import DataError

TYPES = {
    r".*INT.*|(NUMERIC|DECIMAL)\(\d+(,0)?\)": pa.int64(),
    r".*(CHAR|CLOB|TEXT).*|TIME|UUID|JSON": pa.string(),
    r".*BLOB.*|.*BINARY.*": pa.binary(),
    r".*(REAL|FLOA|DOUB).*|(NUMERIC|DECIMAL|NUMBER).*": pa.float64(),
    r"BOOL(EAN)?": pa.bool_(),
    r"(DATE|DATETIME|TIMESTAMP).*": TIME,
}
"""Pattern of a declared type → what values of such a column stand for; the first that fits."""
DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
"""SQLite's pattern of a text that begins with a day."""
DAY_LENGTH = 10
NO_TEXT = b"\xff"
"""A byte that no text in UTF-8 has."""


def connect(file: Path) -> sqlite3.Connection:
    """Open a file that is there.

    Raises:
        DataError: There is none: SQLite would make one.

    """
    if not file.is_file():
        raise DataError("expected a file of SQLite, found none")
    client = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)
    client.text_factory = _text
    return client


def find_table(client: sqlite3.Connection, schema: str, table: str) -> str | None:
    """Return SQL that names a table; None if there is none."""
    query = "SELECT count(*) FROM pragma_table_info(?, ?)"
    schema = schema or "main"
    try:
        (count,) = client.execute(query, [table, schema]).fetchone()
    except sqlite3.OperationalError:  # there is no such schema
        return None
    return f"{quoted(schema)}.{quoted(table)}" if count else None


def open_selection(
    client: sqlite3.Connection, selection: str, later: Later | None
) -> Rows:
    """Open the rows of a table or a query; those of texts come as bytes, which may be no text.

    Args:
        client: Connection.
        selection: SQL that stands behind `FROM`.
        later: SQLite leaves out earlier rows.

    """
    client.execute(f"CREATE TEMP VIEW gyre_rows AS SELECT * FROM {selection}")  # noqa: S608
    query = "SELECT name, type FROM pragma_table_info('gyre_rows', 'temp')"
    declared = client.execute(query).fetchall()
    names = [name for name, _ in declared]
    require_names(names)
    types = {name: _type_of(text) for name, text in declared}
    query = "SELECT * FROM temp.gyre_rows"
    if later and types.get(later.column) == TIME:
        query += _condition(later)
    converters = [CONVERTERS.get(types[name], _as_text) for name in names]
    schema = pa.schema(
        [
            (name, pa.string() if convert is _as_text else pa.binary())
            for name, convert in zip(names, converters, strict=True)
        ]
    )
    batches = _batches(client, query, schema, converters)
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    judged = [name for name in names if types[name] != pa.binary()]
    declared_types = {name: types[name] for name in judged}
    known_types = {name: kind for name, kind in declared_types.items() if kind}
    return Rows(reader, texts=judged, types=known_types)


def quoted(name: str) -> str:
    """Return a name as SQL has it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _type_of(declared: str) -> pa.DataType | None:
    """Return what values of a declared type stand for; None: SQLite does not know it either."""
    text = declared.upper().replace(" ", "")
    for pattern, kind in TYPES.items():
        if re.fullmatch(pattern, text):
            return kind
    return None


def _condition(later: Later) -> str:
    """Return SQL for days from a limit on, and for what does not begin with a day."""
    name = quoted(later.column)
    first_day = later.limit(has_zone=False).date()
    is_later = f"substr({name}, 1, {DAY_LENGTH}) >= '{first_day}'"
    return f" WHERE {is_later} OR {name} NOT GLOB '{DAY}*' OR {name} IS NULL"


def _text(content: bytes) -> str:
    """Return a text; bytes that are none in UTF-8 are kept as they are."""
    return content.decode("utf-8", "surrogateescape")


def _batches(
    client: sqlite3.Connection,
    query: str,
    schema: pa.Schema,
    converters: Sequence[Callable[[Any], str | bytes | None]],
) -> Iterator[pa.RecordBatch]:
    cursor = client.execute(query)
    rows = cursor.fetchmany(READ_ROWS)
    while rows:
        columns = [
            pa.array(map(convert, values), field.type)
            for convert, values, field in zip(
                converters, zip(*rows, strict=True), schema, strict=True
            )
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
        rows = cursor.fetchmany(READ_ROWS)


def _as_text(value: Any) -> str | None:
    """Return a value as a CSV would have it: a whole number has no point."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    is_whole = isinstance(value, float) and value.is_integer()
    is_other = str(value) == "-0.0" or abs(value) >= EXACT_DOUBLE
    return str(int(value)) if is_whole and not is_other else str(value)


def _as_bytes(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogateescape")


def _as_text_bytes(value: Any) -> bytes | None:
    """Return the bytes of a text; a blob, which is none whatever it holds, becomes no UTF-8."""
    if isinstance(value, bytes):
        return f"x'{value.hex()}'".encode() + NO_TEXT
    return _as_bytes(value)


def _as_any_bytes(value: Any) -> bytes | None:
    """Return what `_as_text_bytes` does, of numbers the text that a CSV would have."""
    if isinstance(value, int | float):
        value = _as_text(value)
    return _as_text_bytes(value)


CONVERTERS = {
    pa.binary(): _as_bytes,
    pa.string(): _as_text_bytes,
    None: _as_any_bytes,
}
"""What values of a declared type stand for → the function that gives them; others: `_as_text`."""

"""SQL on a Delta table, for processes that do without Arrow and DuckDB."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from core.errors import DataError
from core.settings import Settings

S3 = {"max_retries": "3", "retry_timeout": "20s", "connect_timeout": "5s"}
"""Options of deltalake; without them it reports a missing bucket after minutes."""
ERROR_LENGTH = 200
"""Characters of Delta's own text in a message of ours."""
COLOURS = "\x1b\\[\\d+m|↳"
"""Marks for a terminal in deltalake's messages."""


def quoted(column: str) -> str:
    """Return the name of a column as an identifier of Delta's and of DuckDB's SQL."""
    return '"' + column.replace('"', '""') + '"'


def query_table(settings: Settings, name: str, query: str) -> list[dict[str, Any]]:
    """Return the rows of an SQL query on the newest version of a table, which it calls `here`.

    A table that does not exist has no rows.

    Raises:
        DataError: The table cannot be read.

    """
    # 40 MB, which the console needs only once somebody opens a page.
    from deltalake import DeltaTable, QueryBuilder  # noqa: PLC0415

    path = str(settings.data / name)
    options = S3 if settings.data_url else None
    with table_errors(name):
        if not DeltaTable.is_deltatable(path, options):
            return []
        table = DeltaTable(path, storage_options=options)
        rows = QueryBuilder().register("here", table).execute(query).read_all()
    dicts: list[dict[str, Any]] = rows.to_struct_array().to_pylist()
    return dicts


@contextmanager
def table_errors(name: str) -> Iterator[None]:
    """Raise an error of Delta or of a disk as DataError, in one line that names the table."""
    from deltalake.exceptions import DeltaError  # noqa: PLC0415  (see `query_table`)

    try:
        yield
    except (DeltaError, OSError) as exc:
        raise DataError(f"table {name}: {short_text(exc)}") from exc


def short_text(exc: Exception) -> str:
    """Return the beginning of an error of Delta, in one line."""
    return " ".join(re.sub(COLOURS, "", str(exc)).split())[:ERROR_LENGTH]

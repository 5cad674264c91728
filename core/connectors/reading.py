"""Reading rows of any place: files, tables of Delta and Iceberg, databases."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from core.connectors.addresses import (
    ICEBERG,
    is_bucket,
    is_url,
    shown_address,
    without_secrets,
)
from core.connectors.databases import open_database
from core.connectors.delta import delta_files, open_delta
from core.connectors.exact_values import exact_values
from core.connectors.files import CSV_ENDINGS, JSON_ENDINGS, files_at
from core.connectors.formats import (
    Later,
    Rows,
    TableFile,
    open_csv,
    open_json_lines,
    open_parquet,
    require_names,
)
from core.connectors.iceberg import iceberg_files, open_iceberg
from core.connectors.texts import inferred
from core.errors import DataError, SettingsError
from core.files import location
from core.packages import missing_client


def parts_of(address: str) -> list[str]:
    """Return the files and tables that an address names; the address itself if it is a database's.

    Raises:
        DataError: There are none, or they cannot be read.

    """
    if is_url(address) and not is_bucket(address):
        return [address]
    with reading(address):
        return files_at(address)


@contextmanager
def open_part(
    part: str, names: Sequence[str] | None = None, later: Later | None = None
) -> Iterator[Rows]:
    """Open a file or a table that `parts_of` returned.

    Args:
        part: Its path or address.
        names: Names of its columns, if they are known; all columns are given anyway.
        later: Rows that are asked for. All but a CSV and JSON lines may leave out the others.

    Raises:
        DataError: It cannot be read, or a column has no name of its own.

    """
    with reading(part), _open(part, names, later) as rows:
        require_names(rows.batches.schema.names)
        yield rows


def is_delta(part: str) -> bool:
    """Whether a part of `parts_of` is a Delta table."""
    return part.endswith("/") or Path(part).is_dir()


def files_of(part: str) -> list[TableFile] | None:
    """Return the files of a table of Delta or Iceberg in the order in which they are read.

    Args:
        part: Its address, as `parts_of` returned it.

    Returns:
        The files; None: the rows of the table come in any order.

    Raises:
        DataError: It cannot be read.

    """
    with reading(part):
        if part.startswith(f"{ICEBERG}://"):
            return iceberg_files(part)
        return delta_files(part.rstrip("/"))


@contextmanager
def _open(
    part: str, names: Sequence[str] | None, later: Later | None
) -> Iterator[Rows]:
    ending = part.lower()
    if part.startswith(f"{ICEBERG}://"):
        yield Rows(open_iceberg(part, later))
    elif is_url(part) and not is_bucket(part):
        with open_database(part, later) as database:
            yield database
    elif is_delta(part):
        yield Rows(open_delta(part.rstrip("/"), later))
    elif ending.endswith(CSV_ENDINGS):
        path = location(part)
        if names is None:
            names = open_csv(path, []).schema.names
        yield Rows(open_csv(path, names), names)
    elif ending.endswith(JSON_ENDINGS):
        rows = open_json_lines(location(part), names)
        yield Rows(rows, rows.schema.names)
    else:
        yield Rows(open_parquet(location(part), later))


def read(address: str) -> pa.Table:
    """Return all rows of a source, texts of files in the types that they stand for.

    Args:
        address: Files, a Delta table, an Iceberg table, or an address of Ibis and `#table`.

    Raises:
        DataError: The source cannot be read.

    """
    typed_tables: list[pa.Table] = []
    text_tables: list[pa.Table] = []
    text_names: set[str] = set()
    for part in parts_of(address):
        with open_part(part) as rows:
            table = rows.batches.read_all()
        table = _in_declared_types(table, rows.types)
        undeclared = {*rows.texts} - {*rows.types}
        (text_tables if undeclared else typed_tables).append(table)
        text_names |= undeclared
    with reading(address):
        if text_tables:
            texts = pa.concat_tables(text_tables, promote_options="permissive")
            columns = {
                name: inferred(texts[name].cast(pa.string()))
                if name in text_names
                else texts[name]
                for name in texts.column_names
            }
            typed_tables.append(pa.table(columns))
        return pa.concat_tables(typed_tables, promote_options="permissive")


def _in_declared_types(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return rows of a database, columns of texts in the types that it declares.

    Where a type does not hold all values of a column, these stay texts, or become times of another
    type: who asked for the rows judges each value.

    Raises:
        DataError: A value is no text.

    """
    for name, kind in types.items():
        position = table.schema.get_field_index(name)
        try:
            texts = table[name].cast(pa.string())
        except pa.ArrowInvalid as exc:
            problem = "string does not hold all its values: cast them in a query"
            raise DataError(f"column {name}: {problem}: {exc}") from exc
        values = exact_values(texts.combine_chunks(), kind)
        if values.null_count > texts.null_count:
            values = inferred(texts) if pa.types.is_temporal(kind) else texts
        table = table.set_column(position, name, values)
    return table


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Raise a DataError that names the file or the database where it cannot be read.

    Raises:
        SettingsError: The client of the place is missing.

    """
    try:
        yield
    except ModuleNotFoundError as exc:
        raise SettingsError(f"{shown_address(address)} {missing_client(exc)}") from exc
    except Exception as exc:  # every reader fails in its own way
        message, _, _ = str(exc).partition("\nLINE ")  # DuckDB's own query
        text = without_secrets(" ".join(message.split()), address)
        if "Could not set lock on file" in text:
            text += "; close the program that writes to it, or name a copy"
        raise DataError(
            f"nothing was changed: {shown_address(address)}: {text}"
        ) from exc

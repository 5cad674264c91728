"""Where a dataset's rows come from: files or any address Ibis can connect to, or the shipped demo.

The demo's dates are moved by whole weeks, so that its last 120 days lie ahead of the day on which
Gyre first started; only what is due is delivered.
"""

from datetime import UTC, datetime, timedelta
from glob import glob
from math import ceil
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from core.errors import DataError
from core.files import read_file, replace_file
from core.settings import ENV_FILE, Settings
from feature_repo.definition import Dataset
from feature_repo.forgotten import forgotten

DEMO_AHEAD = timedelta(days=120)
WEEK = 7
CSV_ENDINGS = (".csv", ".csv.gz")
WHOLE_DAY = r"^(\d{4}-\d\d-\d\d)$"
TIME_WORDS = "a day (2026-11-20) or a time with its offset (2026-11-20T10:30:00Z)"


def pull(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    since: datetime | None = None,
) -> pa.Table:
    """Return the rows that the source holds at `as_of`, without those of forgotten entities.

    Args:
        settings: Name the source, and keep how far the demo is moved.
        dataset: Whose rows to return.
        as_of: The demo delivers what is due at this moment; other sources all that they hold.
        since: Return only rows with a later event time.

    Returns:
        Rows in the source's own order and the dataset's types.

    Raises:
        DataError: There is no source, or it cannot be read, or it has other columns.

    """
    require_source(settings, dataset)
    address = settings.sources.get(dataset.source_name)
    rows = (
        read(address, dataset, since)
        if address
        else _demo_rows(settings, dataset, as_of)
    )
    if since:
        rows = rows.filter(pc.field(dataset.event_time) > since)
    return forgotten(settings).without(rows)


def require_source(settings: Settings, dataset: Dataset) -> None:
    """Raise a DataError, with the line to add, for a dataset that has no source."""
    name = dataset.source_name
    if name not in settings.sources and dataset.shipped is None:
        line = f"GYRE_SOURCES__{name.upper()}=… (a file, or address#table)"
        file = settings.home / ENV_FILE
        raise DataError(f"{dataset.name}: no source; add the line {line} to {file}")


def place(settings: Settings, dataset: Dataset) -> str:
    """Return where the rows come from, without user and password."""
    address = settings.sources.get(dataset.source_name, "shipped file")
    return address.rpartition("@")[2]


def read(
    address: str,
    dataset: Dataset | None = None,
    since: datetime | None = None,
) -> pa.Table:
    """Return the rows of a source.

    Args:
        address: A file, a folder, a glob, or an address of Ibis and `#table`.
        dataset: Gives the columns and their types. Without it, they are those of the source.
        since: A database or a parquet file may leave out rows up to this event time.

    Raises:
        DataError: The source cannot be read, or it has other columns than the dataset.

    """
    files = [address] if "://" in address else _files(address)
    tables = []
    for file in files:  # DuckDB would cast all of them to the types of the first
        is_csv = file.endswith(CSV_ENDINGS)
        try:
            rows = (
                _read_csv(file, dataset)
                if is_csv
                else _read_table(file, dataset, since)
            )
            if dataset:
                rows = _in_schema(rows, dataset, is_csv=is_csv)
        except Exception as exc:  # every reader fails in its own way
            without_password = file.rpartition("@")[2]
            text = " ".join(str(exc).split())
            raise DataError(f"nothing was changed: {without_password}: {text}") from exc
        tables.append(rows)
    return pa.concat_tables(tables, promote_options="permissive")


def type_of(source_type: pa.DataType) -> pa.DataType | None:
    """Return the type that a dataset gives to a column of a source; None if it can take none."""
    kind: Any = ibis.dtype(source_type)
    if kind.is_integer() or (kind.is_decimal() and kind.scale == 0):
        return pa.int64()
    if kind.is_numeric():
        return pa.float64()
    if kind.is_boolean():
        return pa.bool_()
    if kind.is_string():
        return pa.string()
    if kind.is_date() or (kind.is_timestamp() and kind.timezone):
        return pa.timestamp("us", "UTC")
    return None


def _demo_rows(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
) -> pa.Table:
    """Move the shipped rows; the first dataset to ask fixes by how much, for all."""
    rows = _in_schema(pq.read_table(dataset.shipped), dataset, is_csv=False)
    times = rows[dataset.event_time]
    file = settings.data / "demo.json"
    if not file.exists():
        start = settings.demo_start or datetime.now(tz=UTC).date()
        newest = pc.max(times).as_py()
        gap = start + DEMO_AHEAD - newest.date()
        days = WEEK * ceil(gap.days / WEEK)
        replace_file(file, str(days))
    shift = timedelta(days=int(read_file(file)))
    rows = rows.set_column(
        rows.schema.get_field_index(dataset.event_time),
        dataset.event_time,
        pc.add(times, pa.scalar(shift)),
    )
    return rows.filter(pc.field(dataset.event_time) <= as_of)


def _files(address: str) -> list[str]:
    """Return the files that a path, a folder or a glob names."""
    pattern = f"{address}/**" if Path(address).is_dir() else address
    paths = sorted(glob(pattern, recursive=True))  # noqa: PTH207  (takes absolute patterns)
    files = [path for path in paths if path.endswith((".parquet", *CSV_ENDINGS))]
    if not files:
        raise DataError(f"{address}: expected parquet files or CSV files, found none")
    return files


def _read_table(
    address: str,
    dataset: Dataset | None,
    since: datetime | None,
) -> pa.Table:
    """Read a parquet file, or a table of a database."""
    url, _, table = address.partition("#")
    connection = ibis.connect(url) if table else ibis.duckdb.connect()
    try:
        rows = connection.table(table) if table else connection.read_parquet(url)
        if dataset and since:
            rows = rows.filter(rows[dataset.event_time] > since)
        return connection.to_pyarrow(rows)
    finally:
        connection.disconnect()


def _read_csv(path: str, dataset: Dataset | None) -> pa.Table:
    """Read a CSV: the columns of the dataset as texts, others in the type of all their values."""
    content = pa.input_stream(path).read()
    if not content.endswith((b"\n", b"\r")):  # half a number would be a number
        raise DataError(
            "the last line has no end: is it still written, or was it cut short? "
            "If it is whole, end its last line"
        )
    names = dataset.schema.names if dataset else []
    # Types are inferred from one block.
    rows = csv.read_csv(
        pa.BufferReader(content),
        read_options=csv.ReadOptions(block_size=1 << 30),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    if dataset:
        return rows
    fields = [
        field.with_type(type_of(field.type) or pa.string()) for field in rows.schema
    ]
    return rows.cast(pa.schema(fields))


def _in_schema(rows: pa.Table, dataset: Dataset, *, is_csv: bool) -> pa.Table:
    """Cast rows to the dataset's columns, where nothing is lost or guessed.

    Only a CSV may hold other things as text: elsewhere that is a retyped column. A time without an
    offset may be any zone's.
    """
    names = dataset.schema.names
    if set(names) != set(rows.column_names):
        expected = f"the columns of feature_repo/datasets/{dataset.name}.py, {', '.join(names)}"
        raise DataError(f"expected {expected}, found {', '.join(rows.column_names)}")
    columns = []
    for field in dataset.schema:
        column = rows[field.name]
        kind = type_of(column.type)
        is_time = pa.types.is_timestamp(field.type)
        are_numbers = {kind, field.type} == {pa.int64(), pa.float64()}
        expected = TIME_WORDS if is_time else field.type
        problem = f"column {field.name}: expected {expected}, found {column.type}"
        if not (is_csv or are_numbers or kind == field.type):
            raise DataError(problem)
        if is_csv and is_time:
            column = pc.replace_substring_regex(column, WHOLE_DAY, r"\1T00:00:00Z")
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid as exc:
            raise DataError(f"{problem}: {exc}") from exc
    return pa.table(columns, dataset.schema)

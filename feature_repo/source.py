"""Where a dataset's rows come from: files or any address Ibis can connect to, or the shipped demo.

The demo's dates are moved by whole weeks, so that its last 120 days lie ahead of the day on which
Gyre first started; only what is due is delivered.
"""

from datetime import UTC, date, datetime, timedelta
from glob import glob
from math import ceil
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv
from upath import UPath

from core.errors import DataError
from core.files import read_file, replace_file
from core.settings import ENV_FILE, Settings
from feature_repo.definition import Dataset
from feature_repo.forgotten import forgotten

DEMO_DAYS_AHEAD = timedelta(days=120)
MESSAGE_CHARACTERS = 500
"""Of a reader's own words: DuckDB shows its SQL and a caret below an error."""
CSV_ENDINGS = (".csv", ".csv.gz")
LARGEST_BLOCK = 1 << 30
WHOLE_DAY = r"^(\d{4}-\d\d-\d\d)$"
COLUMN_TYPES = (
    pa.int64(),
    pa.float64(),
    pa.bool_(),
    pa.timestamp("us", "UTC"),
    pa.string(),
)
"""What a column of a dataset can be."""
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
        since: Return only rows with a later event time, or with none.

    Returns:
        Rows in the source's own order and the dataset's types.

    Raises:
        DataError: There is no source, or it cannot be read, or it has other columns.

    """
    require_source(settings, dataset)
    address = settings.sources.get(dataset.source_name)
    if address is None:
        rows = _demo_rows(settings, dataset, as_of)
    else:
        try:
            rows = _read(address, dataset, since)
        except DataError as exc:
            raise DataError(f"{dataset.name}: nothing was changed: {exc}") from exc
    if since:
        time = pc.field(dataset.event_time)
        is_later = time > since
        rows = rows.filter(is_later | time.is_null())
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


def read(address: str) -> pa.Table:
    """Return the rows of a source that no dataset describes.

    Raises:
        DataError: The source cannot be read.

    """
    return _read(address, None, None)


def type_of(source_type: pa.DataType) -> pa.DataType | None:
    """Return the type that a dataset gives to a column of a source; None if it can take none."""
    if getattr(source_type, "scale", 0) > 0:
        return pa.float64()
    for type_ in COLUMN_TYPES:
        if _is_castable(source_type, type_):
            return type_
    return None


def demo_shift(start: date, newest: datetime) -> timedelta:
    """Return whole weeks, so that the newest row lies at least 120 days after `start`."""
    gap = start + DEMO_DAYS_AHEAD - newest.date()
    return timedelta(weeks=ceil(gap / timedelta(weeks=1)))


def shift_file(settings: Settings) -> UPath:
    """Return the file that says by how many days the demo is moved; absent before its first."""
    return settings.data / "demo.json"


def _demo_rows(settings: Settings, dataset: Dataset, as_of: datetime) -> pa.Table:
    """Move the shipped rows; the first dataset to ask fixes by how much, for all."""
    rows = pq.read_table(dataset.shipped)
    times = rows[dataset.event_time]
    file = shift_file(settings)
    if not file.exists():
        start = settings.demo_start or datetime.now(tz=UTC).date()
        shift = demo_shift(start, pc.max(times).as_py())
        replace_file(file, str(shift.days))
    shift = timedelta(days=int(read_file(file)))
    moved_times = pc.add(times, pa.scalar(shift))
    position = rows.schema.get_field_index(dataset.event_time)
    rows = rows.set_column(position, dataset.event_time, moved_times)
    return rows.filter(pc.field(dataset.event_time) <= as_of)


def _read(address: str, dataset: Dataset | None, since: datetime | None) -> pa.Table:
    """Read each file alone: DuckDB would cast all of them to the types of the first."""
    tables = []
    try:
        for file in _files(address):
            if file.endswith(CSV_ENDINGS):
                rows = _read_csv(file, dataset)
            else:
                rows = _read_table(file, dataset, since)
            if dataset:
                rows = _in_schema(rows, dataset, file)
            tables.append(rows)
    except DataError:
        raise
    except Exception as exc:  # every reader fails in its own way
        text = " ".join(str(exc).split())
        without_password = address.rpartition("@")[2]
        raise DataError(f"source {without_password}: {text[:MESSAGE_CHARACTERS]}") from exc
    return pa.concat_tables(tables, promote_options="permissive")


def _files(address: str) -> list[str]:
    """Return the files of a folder or a glob; an address of a database stays as it is."""
    if not Path(address).is_dir():
        return sorted(glob(address, recursive=True)) or [address]  # noqa: PTH207  (absolute too)
    endings = (".parquet", *CSV_ENDINGS)
    paths = [path for path in Path(address).rglob("*") if path.is_file()]
    files = [str(path) for path in sorted(paths) if path.name.endswith(endings)]
    if not files:
        raise DataError(f"{address}: expected parquet files or CSV files, found none")
    return files


def _read_table(address: str, dataset: Dataset | None, since: datetime | None) -> pa.Table:
    """Read a parquet file or a table of a database, which leaves out rows up to `since`."""
    url, _, table = address.partition("#")
    is_database = "://" in url
    connection = ibis.connect(url) if is_database else ibis.duckdb.connect()
    try:
        rows = connection.table(table) if is_database else connection.read_parquet(url)
        if dataset and since and dataset.event_time in rows.columns:
            time = rows[dataset.event_time]
            if getattr(time.type(), "timezone", None):
                is_later = time > since
                rows = rows.filter(is_later | time.isnull())
        return connection.to_pyarrow(rows)
    finally:
        connection.disconnect()


def _read_csv(path: str, dataset: Dataset | None) -> pa.Table:
    """Read a CSV: the columns of the dataset as texts, others in the type of all their values."""
    content = pa.input_stream(path).read()
    if not content.endswith((b"\n", b"\r")):  # half a number would be a number
        raise DataError(
            f"{path}: the last line has no end: is it still written, or was it cut short? "
            "If it is whole, end its last line"
        )
    names = dataset.schema.names if dataset else []
    block_size = min(len(content) + 1, LARGEST_BLOCK)
    rows = csv.read_csv(
        pa.BufferReader(content),
        read_options=csv.ReadOptions(block_size=block_size),  # one: types are inferred from it
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    if dataset:
        return rows
    fields = [field.with_type(type_of(field.type) or pa.string()) for field in rows.schema]
    return rows.cast(pa.schema(fields))


def _in_schema(rows: pa.Table, dataset: Dataset, file: str) -> pa.Table:
    """Cast texts of a CSV, numbers, days and times, where nothing is lost or guessed.

    Other types are refused: text that holds numbers is a retyped column, and a time without an
    offset may be any zone's.
    """
    is_csv = file.endswith(CSV_ENDINGS)
    where = file.rpartition("#")[2]
    for field in dataset.schema:
        position = rows.schema.get_field_index(field.name)
        if position < 0:
            continue
        column = rows[position]
        if not (is_csv or _is_castable(column.type, field.type)):
            continue
        expected = str(field.type)
        if is_csv and pa.types.is_timestamp(field.type):
            expected = TIME_WORDS
            column = pc.replace_substring_regex(column, WHOLE_DAY, r"\1T00:00:00Z")
        try:
            column = column.cast(field.type)
        except pa.ArrowInvalid as exc:
            text = f"column {field.name}: expected {expected}, found {column.type}: {exc}"
            raise DataError(f"{where}: {text}") from exc
        rows = rows.set_column(position, field.name, column)
    differences = dataset.differences(rows)
    if differences:
        raise DataError(f"{where}: {differences}")
    return rows.select(dataset.schema.names)


def _is_castable(source_type: pa.DataType, type_: pa.DataType) -> bool:
    source = ibis.dtype(source_type)
    target = ibis.dtype(type_)
    is_whole = bool(source.is_integer() or source.is_decimal())
    if target.is_integer():
        return is_whole
    if target.is_floating():
        return is_whole or bool(source.is_floating())
    if target.is_timestamp():
        return bool(source.is_date() or getattr(source, "timezone", None))
    return bool(source == target)

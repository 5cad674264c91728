"""Where a dataset's rows come from: files or any address Ibis can connect to, or the shipped demo.

The demo's dates are moved by whole weeks, so that its last 120 days lie ahead of the day on which
Gyre first started; only what is due is delivered.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
CSV_BLOCK_BYTES = 16 * 1024 * 1024
"""What is read of a CSV at a time: no row may be longer."""
WHOLE_CSV_BYTES = 1024 * 1024 * 1024
BATCH_ROWS = 100_000
"""Rows of a database or a parquet file that are read at a time."""
WHOLE_DAY = r"^(\d{4}-\d\d-\d\d)$"
TIME_WORDS = "a day (2026-11-20) or a time with its offset (2026-11-20T10:30:00Z)"


def pull(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    since: datetime | None = None,
) -> pa.RecordBatchReader:
    """Read the rows that the source holds at `as_of`, without those of forgotten entities.

    Args:
        settings: Name the source, and keep how far the demo is moved.
        dataset: Whose rows to read.
        as_of: The demo delivers what is due at this moment; other sources all that they hold.
        since: Read only rows with a later event time.

    Returns:
        Batches of rows in the source's own order and the dataset's types. Reading one raises a
        DataError where the source cannot be read or has other columns.

    Raises:
        DataError: There is no source.

    """
    require_source(settings, dataset)
    address = settings.sources.get(dataset.source_name)
    if address:
        batches = _batches(_files(address), dataset, since)
    else:
        batches = _demo_batches(settings, dataset, as_of)
    batches = _filtered_batches(settings, dataset, batches, since)
    return pa.RecordBatchReader.from_batches(dataset.schema, batches)


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
    """Return all rows of a source, in the types that a dataset can give to its columns.

    Args:
        address: A file, a folder, a glob, or an address of Ibis and `#table`.

    Raises:
        DataError: The source cannot be read.

    """
    tables = []
    for file in _files(address):
        with _reading(file), _open(file) as reader:
            tables.append(reader.read_all())
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


def _filtered_batches(
    settings: Settings,
    dataset: Dataset,
    batches: Iterator[pa.RecordBatch],
    since: datetime | None,
) -> Iterator[pa.RecordBatch]:
    """Leave out rows up to `since`, and those of forgotten entities."""
    forgotten_entities = forgotten(settings)
    for batch in batches:
        rows = forgotten_entities.without(batch)
        if since:
            rows = rows.filter(pc.greater(rows[dataset.event_time], pa.scalar(since)))
        yield rows


def _batches(
    files: Sequence[str], dataset: Dataset, since: datetime | None = None
) -> Iterator[pa.RecordBatch]:
    """Read rows in the dataset's types; a database may leave out those up to `since`."""
    # DuckDB would cast all files to the types of the first.
    for file in files:
        is_csv = file.endswith(CSV_ENDINGS)
        with _reading(file), _open(file, dataset, since) as reader:
            # A file without rows has columns.
            _in_schema(reader.schema.empty_table(), dataset, is_csv=is_csv)
            for batch in reader:
                rows = pa.Table.from_batches([batch])
                rows = _in_schema(rows, dataset, is_csv=is_csv)
                yield from rows.to_batches()


def _demo_batches(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
) -> Iterator[pa.RecordBatch]:
    """Read the shipped rows that are due, with their times moved."""
    shift = pa.scalar(_demo_shift(settings, dataset))
    position = dataset.schema.get_field_index(dataset.event_time)
    for batch in _batches([str(dataset.shipped)], dataset):
        times = pc.add(batch[dataset.event_time], shift)
        is_due = pc.less_equal(times, pa.scalar(as_of))
        rows = batch.set_column(position, dataset.event_time, times)
        yield rows.filter(is_due)


def _demo_shift(settings: Settings, dataset: Dataset) -> timedelta:
    """Return how far the demo is moved; the first dataset to ask fixes it, for all."""
    file = settings.data / "demo.json"
    if not file.exists():
        start = settings.demo_start or datetime.now(tz=UTC).date()
        times = pq.read_table(dataset.shipped, columns=[dataset.event_time])
        newest = pc.max(times[dataset.event_time]).as_py()
        gap = start + DEMO_AHEAD - newest.date()
        days = WEEK * ceil(gap.days / WEEK)
        replace_file(file, str(days))
    return timedelta(days=int(read_file(file)))


def _files(address: str) -> list[str]:
    """Return the files that a path, a folder or a glob names; of a database its address."""
    if "://" in address:
        return [address]
    pattern = f"{address}/**" if Path(address).is_dir() else address
    paths = sorted(glob(pattern, recursive=True))  # noqa: PTH207  (takes absolute patterns)
    files = [path for path in paths if path.endswith((".parquet", *CSV_ENDINGS))]
    if not files:
        raise DataError(f"{address}: expected parquet files or CSV files, found none")
    return files


@contextmanager
def _reading(file: str) -> Iterator[None]:
    """Raise a DataError that names the file or the database where it cannot be read."""
    try:
        yield
    except Exception as exc:  # every reader fails in its own way
        without_password = file.rpartition("@")[2]
        message, _, _ = str(exc).partition("\nLINE ")  # DuckDB's own query
        text = " ".join(message.split())
        raise DataError(f"nothing was changed: {without_password}: {text}") from exc


@contextmanager
def _open(
    file: str, dataset: Dataset | None = None, since: datetime | None = None
) -> Iterator[pa.RecordBatchReader]:
    """Open a CSV, a parquet file, or a table of a database.

    The latter two leave out rows up to `since`.
    """
    if file.endswith(CSV_ENDINGS):
        yield _open_csv(file, dataset)
        return
    url, _, table = file.partition("#")
    connection = ibis.connect(url) if table else ibis.duckdb.connect()
    try:
        rows = connection.table(table) if table else connection.read_parquet(url)
        if dataset and since:
            rows = rows.filter(rows[dataset.event_time] > since)
        yield connection.to_pyarrow_batches(rows, chunk_size=BATCH_ROWS)
    finally:
        connection.disconnect()


def _open_csv(path: str, dataset: Dataset | None) -> pa.RecordBatchReader:
    """Open a CSV: the columns of the dataset as texts, others in the type of all their values."""
    names = dataset.schema.names if dataset else []
    # Types are inferred from the first block.
    block_size = CSV_BLOCK_BYTES if dataset else WHOLE_CSV_BYTES
    reader = csv.open_csv(
        pa.TransformInputStream(pa.input_stream(path), _LineEndCheck()),
        read_options=csv.ReadOptions(block_size=block_size),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    if dataset:
        return reader
    fields = [
        field.with_type(type_of(field.type) or pa.string()) for field in reader.schema
    ]
    return reader.cast(pa.schema(fields))


class _LineEndCheck:
    """Passes the bytes of a CSV on.

    Raises:
        DataError: The last line has no end: half a number would be a number.

    """

    def __init__(self) -> None:
        self._last_byte = b""

    def __call__(self, block: pa.Buffer) -> pa.Buffer:
        if len(block):
            self._last_byte = block[-1:].to_pybytes()
        elif self._last_byte not in (b"\n", b"\r"):
            raise DataError(
                "the last line has no end: the file is incomplete, or still being written. "
                "If it is complete, add a line end"
            )
        return block


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

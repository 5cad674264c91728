"""Where a dataset's rows come from: files or any address Ibis can connect to, or the shipped demo.

The demo's dates are moved by whole weeks, so that its last 120 days lie ahead of the day on which
Gyre first started; only rows that are due are delivered.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import NamedTuple

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import csv
from pyarrow.fs import LocalFileSystem

from core.errors import DataError
from core.files import read_file, replace_file
from core.project import ENV_FILE
from core.settings import Settings
from core.tables.addresses import is_url, rows_at, shown_address
from feature_engine.engines.engine import value_error
from feature_engine.ingest.exact_types import (
    in_schema,
    inferred,
    type_of,
    type_problem,
)
from feature_engine.ingest.forgotten import forgotten
from feature_engine.ingest.source_files import CSV_ENDINGS, files_at
from feature_repo.definition import TIMESTAMP, Dataset

DEMO_AHEAD = timedelta(days=120)
WEEK = 7
CSV_BLOCK_BYTES = 16 * 1024 * 1024
"""Bytes of a CSV that are read at a time: no row may be longer."""
READ_ROWS = 100_000
"""Rows of a database or a parquet file that are read at a time."""
UNREADABLE_ROWS = 100_000
"""Largest number of unreadable rows: memory holds them until the delivery is judged."""
SECRETS = r"(?<=://).+(?=@)|(?<=\?)[^#]+"
"""Parts of an address: user and password, and options."""
PARQUET = ds.ParquetFileFormat(coerce_int96_timestamp_unit="us", pre_buffer=False)
"""Reads a file row group by row group, not all of it ahead."""


class _Source(NamedTuple):
    """An open file or table: its rows, and the names of columns whose texts stand for other types."""

    rows: pa.RecordBatchReader
    texts: Collection[str] = ()


def pull(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    since: datetime | None = None,
    unreadable: dict[str, str] | None = None,
) -> pa.RecordBatchReader:
    """Read the rows that the source holds at `as_of`, without rows of forgotten entities.

    Args:
        settings: Settings of the installation. They name the source; its home keeps how far the
            demo is moved.
        dataset: The dataset of the rows.
        as_of: The demo delivers the rows that are due at this moment, another source all its rows.
        since: Read only rows with a later event time.
        unreadable: Gets the rows (JSON) that the columns do not hold, with the reason, while the
            others are read.

    Returns:
        Batches of rows in the source's own order and the dataset's types. Reading one raises a
        DataError where the source cannot be read or has other columns, or where `unreadable` is
        missing.

    Raises:
        DataError: There is no source.

    """
    require_source(settings, dataset)
    address = settings.sources.get(dataset.source_name)
    if address:
        batches = _batches(_files(address), dataset, since)
    else:
        batches = _demo_batches(settings, dataset, as_of)
    batches = _readable_batches(settings, dataset, batches, since, unreadable)
    return pa.RecordBatchReader.from_batches(dataset.schema, batches)


def require_source(settings: Settings, dataset: Dataset) -> None:
    """Raise a DataError, with the line to add, for a dataset that has no source."""
    name = dataset.source_name
    if name not in settings.sources and dataset.shipped is None:
        line = f"GYRE_SOURCES__{name.upper()}=… (a file, or address#table)"
        file = settings.home / ENV_FILE
        raise DataError(f"{dataset.name}: no source; add the line {line} to {file}")


def place(settings: Settings, dataset: Dataset) -> str:
    """Return the address that the rows come from, without user and password."""
    return shown_address(settings.sources.get(dataset.source_name, "shipped file"))


def read(address: str) -> pa.Table:
    """Return all rows of a source, in the types that a dataset can give to its columns.

    Args:
        address: A file, a folder, a glob, or an address of Ibis and `#table`.

    Raises:
        DataError: The source cannot be read.

    """
    typed_tables: list[pa.Table] = []
    text_tables: list[pa.Table] = []
    text_names: set[str] = set()
    for file in _files(address):
        with _reading(file), _open(file) as source:
            _require_names(source.rows.schema.names)
            rows = source.rows.read_all()
        (text_tables if source.texts else typed_tables).append(rows)
        text_names.update(source.texts)
    with _reading(address):
        if text_tables:
            texts = pa.concat_tables(text_tables, promote_options="permissive")
            columns = {
                name: inferred(texts[name]) if name in text_names else texts[name]
                for name in texts.column_names
            }
            typed_tables.append(pa.table(columns))
        return pa.concat_tables(typed_tables, promote_options="permissive")


def _readable_batches(
    settings: Settings,
    dataset: Dataset,
    batches: Iterator[pa.RecordBatch],
    since: datetime | None,
    unreadable: dict[str, str] | None,
) -> Iterator[pa.RecordBatch]:
    """Leave out rows up to `since`, and rows of forgotten entities; set unreadable rows aside.

    A row without a time stays: rules judge it.
    """
    forgotten_entities = forgotten(settings)
    for batch in batches:
        rows = forgotten_entities.without(batch)
        if since:
            is_later = pc.greater(rows[dataset.event_time], since)
            rows = rows.filter(pc.fill_null(is_later, fill_value=True))
        *columns, marks = rows.columns
        for mark in marks.drop_null().to_pylist():
            if unreadable is None or len(unreadable) == UNREADABLE_ROWS:
                problem = f"rows cannot be read, such as {mark['problem']}"
                raise DataError(f"{dataset.name}: nothing was changed: {problem}")
            unreadable[mark["row"]] = mark["problem"]
        readable_rows = pa.RecordBatch.from_arrays(columns, schema=dataset.schema)
        yield readable_rows.filter(marks.is_null())


def _batches(
    files: Sequence[str], dataset: Dataset, since: datetime | None = None
) -> Iterator[pa.RecordBatch]:
    """Read rows in the dataset's types and UNREADABLE; files may leave out rows up to `since`.

    Raises:
        DataError: A column holds nothing but values of another type.

    """
    for file in files:
        with _reading(file), _open(file, dataset, since) as source:
            _require_columns(source, dataset)
            problems: dict[str, str | None] = {}
            for batch in source.rows:
                yield in_schema(batch, dataset, problems)
            for problem in filter(None, problems.values()):
                raise DataError(problem)


def _demo_batches(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
) -> Iterator[pa.RecordBatch]:
    """Read the shipped rows that are due, with their times moved.

    The first dataset to ask fixes for all how far they are moved.
    """
    file = settings.data / "demo.json"
    if not file.exists():
        start = settings.demo_start or datetime.now(UTC).date()
        dates = pq.read_table(dataset.shipped, columns=[dataset.event_time])
        newest = pc.max(dates[dataset.event_time]).as_py()
        gap = start + DEMO_AHEAD - newest.date()
        days = WEEK * ceil(gap.days / WEEK)
        replace_file(file, str(days))
    shift = timedelta(days=int(read_file(file)))
    position = dataset.schema.get_field_index(dataset.event_time)
    for batch in _batches([str(dataset.shipped)], dataset):
        times = pc.add(batch[dataset.event_time], shift)
        is_due = pc.less_equal(times, as_of)
        rows = batch.set_column(position, dataset.event_time, times)
        yield rows.filter(pc.fill_null(is_due, fill_value=True))


def _files(address: str) -> list[str]:
    """Return the files and tables that an address names; the address itself if it is a database's."""
    if is_url(address):
        return [address]
    with _reading(address):
        return files_at(address)


@contextmanager
def _reading(address: str) -> Iterator[None]:
    """Raise a DataError that names the file or the database where it cannot be read."""
    try:
        yield
    except Exception as exc:  # every reader fails in its own way
        text = value_error(exc)
        if is_url(address):
            for secret in re.findall(SECRETS, address):
                text = text.replace(secret, "…")
        if "Could not set lock on file" in text:
            text += "; close the program that writes to it, or name a copy"
        raise DataError(
            f"nothing was changed: {shown_address(address)}: {text}"
        ) from exc


@contextmanager
def _open(
    file: str, dataset: Dataset | None = None, since: datetime | None = None
) -> Iterator[_Source]:
    """Open a CSV, a parquet file, a Delta table, or a table of a database.

    All but a CSV may leave out rows up to `since`.
    """
    event_time = dataset.event_time if dataset and since else None
    if is_url(file):
        with _open_database(file, event_time, since) as source:
            yield source
    elif Path(file).is_dir():
        yield _Source(rows_at(file, event_time, since))
    elif file.lower().endswith(CSV_ENDINGS):
        names = dataset.schema.names if dataset else _open_csv(file, []).schema.names
        yield _Source(_open_csv(file, names), names)
    else:
        yield _Source(_open_parquet(file, event_time, since))


@contextmanager
def _open_database(
    address: str, event_time: str | None, since: datetime | None
) -> Iterator[_Source]:
    url, _, table = address.rpartition("#")
    file = url.removeprefix("duckdb://")
    if not url:
        connection = ibis.duckdb.connect()
    elif Path(
        file
    ).is_file():  # its name is a path, whatever it would mean in an address
        connection = ibis.duckdb.connect(file, read_only=True)
    else:
        connection = ibis.connect(url)
    try:
        if url:
            rows = connection.table(table)
        else:
            rows = connection.read_parquet(address, hive_partitioning=False)
        if event_time:
            time = rows[event_time]
            rows = rows.filter((time > since) | time.isnull())
        times = []
        if connection.name == "postgres":  # its client fails at years above 9999
            connection.con.execute("SET TIME ZONE 'UTC'")
            kinds = rows.schema().items()
            times = [name for name, kind in kinds if type_of(kind) == TIMESTAMP]
            rows = rows.mutate({name: rows[name].cast("string") for name in times})
        yield _Source(connection.to_pyarrow_batches(rows, chunk_size=READ_ROWS), times)
    finally:
        connection.disconnect()


def _open_parquet(
    file: str, event_time: str | None, since: datetime | None
) -> pa.RecordBatchReader:
    """Open one file: no folder of its path is a column, and no name a pattern."""
    fragment = PARQUET.make_fragment(file, LocalFileSystem())
    schema = fragment.physical_schema
    _require_names(schema.names)
    condition = None
    kind = schema.field(event_time).type if event_time in schema.names else None
    # Arrow 25 cannot filter columns of such texts.
    can_filter = pa.string_view() not in schema.types
    if (
        since
        and can_filter
        and type_of(kind) == TIMESTAMP
        and pa.types.is_timestamp(kind)
    ):
        earlier = pa.scalar(since - timedelta(seconds=1))  # the type may be of seconds
        time = pc.field(event_time)
        condition = (time > earlier.cast(kind, safe=False)) | time.is_null()
    return fragment.scanner(filter=condition, batch_size=READ_ROWS).to_reader()


def _open_csv(path: str, names: Collection[str]) -> pa.RecordBatchReader:
    """Open a CSV, with the columns `names` as texts."""
    compression = "gzip" if path.lower().endswith(".gz") else None
    stream = pa.input_stream(path, compression=compression)
    return csv.open_csv(
        pa.TransformInputStream(stream, _TextCheck()),
        read_options=csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


class _TextCheck:
    """Passes the bytes of a CSV on.

    Raises:
        DataError: They are no UTF-8, or the last line has no end: half a number would be a number.

    """

    def __init__(self) -> None:
        self._last_byte = b""

    def __call__(self, block: pa.Buffer) -> pa.Buffer:
        if b"\0" in memoryview(block)[:1000].tobytes():
            raise DataError(
                "expected a CSV in UTF-8, found UTF-16 or no text: convert it"
            )
        if len(block):
            self._last_byte = block[-1:].to_pybytes()
        elif self._last_byte not in (b"\n", b"\r"):
            raise DataError(
                "the last line has no end: the file is incomplete, or still being written. "
                "If it is complete, add a line end"
            )
        return block


def _require_names(names: Sequence[str]) -> None:
    """Raise a DataError where a column has no name, or two have the same."""
    for number, name in enumerate(names, 1):
        if not name:
            raise DataError(
                f"column {number} of {len(names)} has no name: name it, or remove the comma at "
                "the header's end"
            )
        if names.index(name) + 1 < number:
            raise DataError(f"two columns are called {name}: rename one")


def _require_columns(source: _Source, dataset: Dataset) -> None:
    """Raise a DataError where names or types of columns differ from the dataset's.

    Only texts of a CSV may hold other types: elsewhere that is a retyped column. A time without an
    offset may be any zone's.
    """
    columns = source.rows.schema
    _require_names(columns.names)
    names = dataset.schema.names
    if set(names) != set(columns.names):
        expected = f"the columns of feature_repo/datasets/{dataset.name}.py, {', '.join(names)}"
        raise DataError(f"expected {expected}, found {', '.join(columns.names)}")
    for field in dataset.schema:
        source_type = columns.field(field.name).type
        kind = type_of(source_type)
        are_numbers = {kind, field.type} == {pa.int64(), pa.float64()}
        if not (field.name in source.texts or are_numbers or kind == field.type):
            raise DataError(type_problem(field, source_type))

"""The rows of a dataset's source, or of the shipped demo, in the dataset's types.

The demo's dates are moved by whole weeks, so that its last 120 days lie ahead of the day on which
Gyre first started; only rows that are due are delivered.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.connectors.addresses import ICEBERG, is_bucket, is_url, shown_address
from core.connectors.exact_values import type_of
from core.connectors.formats import Later, Rows, TableFile, are_in_order
from core.connectors.reading import files_of, is_delta, open_part, parts_of, reading
from core.errors import DataError
from core.files import read_file, read_if_present, replace_file
from core.project import ENV_FILE
from core.settings import Settings
from core.tables.query import quoted
from feature_engine.engines.duckdb_engine import duckdb_connection
from feature_engine.ingest.exact_types import UNREADABLE, in_schema, type_problem
from feature_engine.ingest.forgotten import forgotten
from feature_engine.ingest.key_values import ForgottenRecords
from feature_engine.ingest.topics import LEARNT_AT, topic_batches
from feature_repo.definition import OWN_PREFIX, TIMESTAMP, Dataset

DEMO_AHEAD = timedelta(days=120)
WEEK = 7
UNREADABLE_ROWS = 100_000
"""Largest number of unreadable rows: memory holds them until the delivery is judged."""
MEMORY_LIMIT = "250MB"
"""Memory of DuckDB, which looks for keys without an order; beyond it, DuckDB spills to disk."""
ROWS = f"{OWN_PREFIX}rows"
FILE = f"{OWN_PREFIX}file"
COMMIT = f"{OWN_PREFIX}commit"
IS_OF_COMMIT = f"{OWN_PREFIX}is_of_commit"
UNORDERED_KEYS = f"""
WITH keys_of_commits AS (
    SELECT
        {{key}},
        {COMMIT},
        min({FILE}) = max({FILE}) AND bool_and({IS_OF_COMMIT}) AS is_known,
        count(*) AS row_count,
        min(hash({{content}})) AS least_content,
        max(hash({{content}})) AS most_content
    FROM {ROWS}
    WHERE {{has_key}}
    GROUP BY {{key}}, {COMMIT}
)
SELECT 1
FROM keys_of_commits
GROUP BY {{key}}
HAVING
    sum(row_count) > 1
    AND NOT arg_max(is_known, {COMMIT})
    AND (NOT {{has_contents}} OR min(least_content) <> max(most_content))
LIMIT 1
"""  # noqa: S608  (names alone)
"""Query for a key whose last row is not known.

It is known if it lies in the only file of a later commit than all others, and that commit brought
it: the rows of a file have the order in which they were written.
"""


def pull(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    since: datetime | None = None,
    unreadable: dict[str, str] | None = None,
    *,
    are_times_needed: bool = False,
) -> pa.RecordBatchReader:
    """Read the rows that the source holds at `as_of`, without rows of forgotten entities.

    Args:
        settings: Settings of the installation. They name the source; its home keeps how far the
            demo is moved.
        dataset: The dataset of the rows.
        as_of: The demo delivers the rows that are due at this moment, another source all its rows.
        since: Read only rows with a later event time; of a topic, the records from this time on.
        unreadable: Gets the rows (JSON) that the columns do not hold, with the reason, while the
            others are read.
        are_times_needed: Whether records of a topic have their times, in the column LEARNT_AT.

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
        later = Later(dataset.event_time, since) if since else None
        time_zone = settings.time_zones.get(dataset.source_name)
        batches = _batches(parts_of(address), dataset, later, time_zone)
    elif not has_source(settings, dataset):
        batches = topic_batches(settings, dataset, since)
        since = None
    else:
        batches = _demo_batches(settings, dataset, as_of)
    schema = dataset.schema
    if are_times_needed:
        schema = schema.append(pa.field(LEARNT_AT, TIMESTAMP))
    batches = _readable_batches(settings, dataset, batches, since, unreadable)
    selected_batches = (batch.select(schema.names) for batch in batches)
    return pa.RecordBatchReader.from_batches(schema, selected_batches)


def has_source(settings: Settings, dataset: Dataset) -> bool:
    """Whether there are rows of a dataset beside its topic."""
    return dataset.source_name in settings.sources or dataset.shipped is not None


def require_source(settings: Settings, dataset: Dataset) -> None:
    """Raise a DataError, with the line to add, for a dataset that has no source and no topic."""
    name = dataset.source_name
    if not has_source(settings, dataset) and dataset.topic is None:
        line = f"GYRE_SOURCES__{name.upper()}=… (a file, or address#table)"
        file = settings.home / ENV_FILE
        raise DataError(f"{dataset.name}: no source; add the line {line} to {file}")


def is_in_order(settings: Settings, dataset: Dataset) -> bool:
    """Whether the source tells of two rows of a key which came last.

    Files have their names, Delta and Iceberg their commits, topics their offsets. A database gives
    rows in any order. So do the files of one commit, and a file with rows of several commits, as a
    compaction or the change of another row writes it: there it depends on the keys.
    """
    address = settings.sources.get(dataset.source_name)
    if not address:
        return True
    if address.startswith(f"{ICEBERG}://"):
        tables = [address]
    elif is_url(address) and not is_bucket(address):
        return False
    else:
        tables = [part for part in parts_of(address) if is_delta(part)]
    return all(_tells_last_rows(settings, dataset, table) for table in tables)


def _tells_last_rows(settings: Settings, dataset: Dataset, table: str) -> bool:
    files = files_of(table)
    if files is None:
        return False
    if are_in_order(files):
        return True
    # In most tables no key stands twice, and the columns of the key show it.
    if not _has_unordered_key(settings, dataset, table, files, dataset.key):
        return True
    return not _has_unordered_key(settings, dataset, table, files, dataset.schema.names)


def _has_unordered_key(
    settings: Settings,
    dataset: Dataset,
    table: str,
    files: Sequence[TableFile],
    columns: Sequence[str],
) -> bool:
    """Whether nothing tells of some key which of its rows came last.

    Args:
        settings: Settings of the installation; DuckDB spills into its cache.
        dataset: The dataset of the rows.
        table: Address of the table.
        files: The files of the table.
        columns: Columns that are read. Rows that are equal in them need no order, unless they are
            those of the key alone.

    """
    key = [*map(quoted, dataset.key)]
    query = UNORDERED_KEYS.format(
        key=", ".join(key),
        has_key=" AND ".join(f"{name} IS NOT NULL" for name in key),
        content=", ".join(map(quoted, columns)),
        has_contents=len(columns) > len(dataset.key),
    )
    config: dict[str, Any] = {
        "memory_limit": MEMORY_LIMIT,
        "temp_directory": str(settings.cache / f"{dataset.name}.order"),
    }
    batches = _numbered_batches(files, columns)
    with reading(table), duckdb_connection(**config) as connection:
        first_batch = next(batches, None)
        if first_batch is None:
            return False
        rows = pa.RecordBatchReader.from_batches(
            first_batch.schema, chain([first_batch], batches)
        )
        connection.con.register(ROWS, rows)
        return connection.con.execute(query).fetchone() is not None


def _numbered_batches(
    files: Sequence[TableFile], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Read files, with the number of each, of its commit, and whether that brought its rows."""
    for number, file in enumerate(files):
        for batch in file.read(columns):
            row_count = len(batch)
            own_columns = {
                FILE: pa.repeat(number, row_count),
                COMMIT: pa.repeat(file.commit, row_count),
                IS_OF_COMMIT: pa.repeat(file.is_of_commit, row_count),
            }
            numbered = batch.select(columns)
            for name, values in own_columns.items():
                numbered = numbered.append_column(name, values)
            yield numbered


def place(settings: Settings, dataset: Dataset) -> str:
    """Return the address that the rows come from, without user and password."""
    if dataset.topic and not has_source(settings, dataset):
        return f"topic {dataset.topic.name}"
    return shown_address(settings.sources.get(dataset.source_name, "shipped file"))


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
    forgotten_records = ForgottenRecords(settings, dataset, forgotten_entities)
    for batch in batches:
        rows = forgotten_entities.without(batch)
        if since:
            is_later = pc.greater(rows[dataset.event_time], since)
            rows = rows.filter(pc.fill_null(is_later, fill_value=True))
        marks = rows[UNREADABLE.name]
        for mark in marks.drop_null().to_pylist():
            if forgotten_records.have_row(mark["row"]):
                continue
            if unreadable is None or len(unreadable) == UNREADABLE_ROWS:
                problem = f"rows cannot be read, such as {mark['problem']}"
                raise DataError(f"{dataset.name}: nothing was changed: {problem}")
            unreadable[mark["row"]] = mark["problem"]
        yield rows.filter(marks.is_null())


def _batches(
    parts: Sequence[str],
    dataset: Dataset,
    later: Later | None = None,
    time_zone: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Read rows in the dataset's types and UNREADABLE; earlier rows may be left out.

    Raises:
        DataError: A column holds nothing but values of another type.

    """
    for part in parts:
        with open_part(part, dataset.schema.names, later) as rows:
            _require_columns(rows, dataset, time_zone)
            problems: dict[str, str | None] = {}
            for batch in rows.batches:
                yield in_schema(batch, dataset, problems, time_zone)
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
    if read_if_present(file) is None:
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


def _require_columns(rows: Rows, dataset: Dataset, time_zone: str | None) -> None:
    """Raise a DataError where names or types of columns differ from the dataset's.

    Only texts of files may hold other types: elsewhere that is a retyped column, also where a
    database's values come as texts. A time without an offset may be any zone's.
    """
    columns = rows.batches.schema
    names = dataset.schema.names
    if set(names) != set(columns.names):
        expected = f"the columns of feature_repo/datasets/{dataset.name}.py, {', '.join(names)}"
        raise DataError(f"expected {expected}, found {', '.join(columns.names)}")
    for field in dataset.schema:
        source_type = columns.field(field.name).type
        source_type = rows.types.get(field.name, source_type)
        kind = type_of(source_type, time_zone)
        are_numbers = {kind, field.type} == {pa.int64(), pa.float64()}
        # A file in which a column has no value at all may have no type for it.
        is_empty = pa.types.is_null(source_type)
        is_free = field.name in rows.texts and field.name not in rows.types
        if not (is_free or is_empty or are_numbers or kind == field.type):
            problem = type_problem(field, source_type)
            if type_of(source_type, "UTC") == field.type:
                setting = f"GYRE_TIME_ZONES__{dataset.source_name.upper()}"
                problem += f": its times have no zone; name it: {setting}=Europe/Berlin"
            elif kind is None:
                problem += ": no column of a dataset has it; convert it, in a database by a query"
            raise DataError(problem)

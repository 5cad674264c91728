"""Quarantine: rows that were set aside. They are mended at the source, or released.

A row that comes again as it was is judged again; with other content it is a new row.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.json import ParseOptions, read_json
from pydantic import TypeAdapter, ValidationError

from core.locks import INGEST_LOCK, one_writer
from core.settings import Settings
from core.tables.table import Table
from feature_engine.engines.duckdb_engine import duckdb_connection
from feature_engine.events.broker import broker_time
from feature_engine.ingest.exact_types import as_text
from feature_engine.ingest.forgotten import forgotten
from feature_engine.ingest.history import History, microseconds, write_history
from feature_engine.ingest.key_values import ForgottenRecords
from feature_engine.ingest.value_faults import find_faults
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.definition import POSITION, TIMESTAMP, Dataset
from feature_repo.event_schema import event_schema
from feature_repo.rules import DatasetRules

Row = dict[str, Any]
ENTRY = pa.schema(
    {"quarantined_at": TIMESTAMP, "rules": pa.string(), "row": pa.string()}
)


@dataclass(frozen=True)
class Release:
    """The result of a release from quarantine.

    Attributes:
        released: Number of rows that the raw table has now.
        refused: Number of rows that stay: they break a rule, have other columns than today's, or
            keep a view from being computed.
        conflicts: Each row that stays as another row of its key counts, with that row.
        forgotten: Number of rows of forgotten entities, which were removed.

    """

    released: int
    refused: int
    conflicts: list[tuple[Row, Row]]
    forgotten: int = 0


def quarantine_table(settings: Settings, dataset: Dataset) -> Table:
    """Return the table of rows set aside: time, broken rules, and row as JSON (types may be wrong)."""
    return Table(settings, f"quarantine/{dataset.name}", ENTRY)


def quarantine_entries(
    rows: Sequence[str], rules: Sequence[str], at: datetime
) -> pa.Table:
    """Return rows (JSON), each with the rules that it broke, as entries of quarantine."""
    columns = {"quarantined_at": [at] * len(rows), "rules": rules, "row": rows}
    return pa.table(columns, ENTRY)


def quarantine(table: Table, entries: pa.Table | ds.Dataset) -> int:
    """Write entries to quarantine unless it has them already; return the number of new ones.

    Args:
        table: The table of quarantine.
        entries: Entries; of a dataset, which is read by batches, one for each row.

    """
    if isinstance(entries, pa.Table):
        entry_by_row = {entry["row"]: entry for entry in entries.to_pylist()}
        entries = pa.Table.from_pylist([*entry_by_row.values()], ENTRY)
    return table.merge(entries, key=["row"], content=["rules"])["inserted"]


def quarantine_faults(
    table: Table,
    dataset: Dataset,
    rows: pa.Table,
    faults: Mapping[int, str],
    at: datetime,
) -> int:
    """Write rows, numbered by POSITION, to quarantine for their faults; see `quarantine`."""
    texts = as_json(rows.select(dataset.schema.names))
    reasons = [faults[position] for position in rows[POSITION].to_pylist()]
    return quarantine(table, quarantine_entries(texts, reasons, at))


def held_rows(table: Table, rows: Sequence[str]) -> pa.Table:
    """Return the rows (JSON), among some, that quarantine holds, as its column `row`."""
    is_row = pc.field("row").isin(pa.array(rows, pa.string()))
    return table.read(columns=["row"], where=is_row)


def leave_quarantine(table: Table, rows: Sequence[str]) -> None:
    """Remove the entries of rows (JSON) that the raw table has now."""
    table.remove(held_rows(table, rows), ["row"])


def heal(settings: Settings, dataset: Dataset, as_of: datetime) -> int:
    """Move rows that views cannot be computed from out of the raw table; return their number.

    Raises:
        BatchRejectedError: See `find_faults`.

    """
    raw = raw_table(settings, dataset)
    spill = str(settings.cache / f"{dataset.name}.heal")
    with (
        one_writer(settings, raw.name),
        duckdb_connection(temp_directory=spill) as connection,
    ):
        rows = open_raw(connection, raw)
        order = ["ingested_at", dataset.event_time, *dataset.key]
        rows = rows.mutate({POSITION: ibis.row_number().over(order_by=order)})
        faults = find_faults(dataset, connection, rows)
        rows_at_fault = rows.filter(rows[POSITION].isin([*faults])).to_pyarrow()
        # In this order: a kill in between loses no row.
        aside = quarantine_table(settings, dataset)
        quarantine_faults(aside, dataset, rows_at_fault, faults, as_of)
        raw.remove(rows_at_fault, dataset.key)
    return len(faults)


def quarantined(settings: Settings, dataset: Dataset) -> list[Row]:
    """Return the rows of `dataset` that were set aside, oldest first, as in `quarantine_table`."""
    table = quarantine_table(settings, dataset)
    entries: list[Row] = table.read().sort_by("quarantined_at").to_pylist()
    for entry in entries:
        entry["row"] = json.loads(entry["row"])
    return entries


def release(settings: Settings, dataset: Dataset, as_of: datetime) -> Release:
    """Let rows in quarantine that pass today's rules into the raw table, as arrived at `as_of`.

    Of several rows of one key the newest gets in, or that of the highest version; none does if the
    table has a row of that key. Rows of forgotten entities are removed.

    A row gets in as an event of the time at which it was set aside: whatever was learnt later counts,
    and a source that repeats what it said before undoes nothing.

    Args:
        settings: Settings of the installation.
        dataset: The dataset of the rows.
        as_of: Now; the rows become known at this moment.

    Raises:
        DataError: This host's clock is over a minute ahead of the broker's; nothing was changed.

    """
    broker_time(settings)
    key_of = itemgetter(*dataset.key)
    names = dataset.schema.names
    raw = raw_table(settings, dataset)
    ingest_lock = INGEST_LOCK.format(dataset.name)
    with one_writer(settings, ingest_lock), one_writer(settings, raw.name):
        forgotten_count = _remove_forgotten(settings, dataset)
        entries = quarantined(settings, dataset)
        good_rows, times = _good_rows(dataset, entries, as_of)
        first_key = dataset.key[0]
        has_key = pc.field(first_key).isin(good_rows[first_key])
        stored_rows = raw.read(columns=names, where=has_key)
        rows_by_key = {}
        for row in sorted(good_rows.to_pylist(), key=partial(_version_of, dataset)):
            rows_by_key[key_of(row)] = row
        for row in stored_rows.to_pylist():
            rows_by_key[key_of(row)] = row
        released_rows = []
        conflicts = []
        for row, time in zip(good_rows.to_pylist(), times, strict=True):
            standing_row = rows_by_key[key_of(row)]
            if standing_row == row:
                own_columns = {
                    "ingested_at": as_of,
                    "superseded": _superseded_of(dataset, row, time),
                }
                released_rows.append(row | own_columns)
            else:
                conflicts.append((row, standing_row))
        arrivals = pa.Table.from_pylist(released_rows, raw.schema)
        arrivals = _computable_rows(dataset, raw, arrivals)
        raw.merge(arrivals, dataset.key, names)
        texts = as_json(arrivals.select(names))
        leave_quarantine(quarantine_table(settings, dataset), texts)
    return Release(
        released=arrivals.num_rows,
        refused=len(entries) - arrivals.num_rows - len(conflicts),
        conflicts=conflicts,
        forgotten=forgotten_count,
    )


def _remove_forgotten(settings: Settings, dataset: Dataset) -> int:
    """Remove the rows in quarantine of forgotten entities; return their number."""
    table = quarantine_table(settings, dataset)
    records = ForgottenRecords(settings, dataset, forgotten(settings))
    texts = table.read(columns=["row"])["row"].to_pylist()
    forgotten_texts = [text for text in texts if records.have_row(text)]
    if forgotten_texts:
        leave_quarantine(table, forgotten_texts)
        table.purge()
    return len(forgotten_texts)


def _version_of(dataset: Dataset, row: Row) -> tuple[bool, Any]:
    """Return what rows of one key are sorted by, stably: their version, a null before all others."""
    version = row[dataset.version] if dataset.version else None
    return version is not None, 0 if version is None else version


def _superseded_of(dataset: Dataset, row: Row, time: datetime) -> str:
    """Return the value of `superseded` of a row that was set aside at a time."""
    if dataset.version:
        return ""
    text = as_text(row)
    return write_history(History().with_event(microseconds(time), text), text)


def _good_rows(
    dataset: Dataset, entries: Sequence[Row], as_of: datetime
) -> tuple[pa.Table, list[datetime]]:
    """Return the rows of entries that pass today's rules, and whose columns hold their values.

    Rows in quarantine are JSON: what an event may have, such a row may have.

    Returns:
        The rows, and the time at which each was set aside.

    """
    row_type = event_schema(dataset, never_null=set()).row_type()
    judge = TypeAdapter(row_type)
    readable_rows = []
    times = []
    for entry in entries:
        with suppress(ValidationError):
            readable_rows.append(judge.validate_json(as_text(entry["row"])))
            times.append(entry["quarantined_at"])
    rows = pa.Table.from_pylist(readable_rows, dataset.schema)
    rules = DatasetRules(dataset, for_events=True)
    bad_rows = rules.validate(rows, as_of).bad_rows
    numbers = [number for number in range(len(rows)) if number not in bad_rows]
    good_rows = rows.take(pa.array(numbers, pa.int64()))
    return good_rows, [times[number] for number in numbers]


def _computable_rows(dataset: Dataset, raw: Table, rows: pa.Table) -> pa.Table:
    """Return the rows, with POSITION, that views can be computed from once the table has them."""
    count = len(rows)
    rows = rows.append_column(POSITION, pa.arange(0, count))
    with duckdb_connection() as connection:
        faults = find_faults(dataset, connection, ibis.memtable(rows), raw, count)
    is_at_fault = pc.field(POSITION).isin(pa.array(faults, pa.int64()))
    return rows.filter(~is_at_fault)


def as_json(rows: pa.Table) -> list[str]:
    return [as_text(row) for row in rows.to_pylist()]


def from_json(text: str, schema: pa.Schema) -> Row:
    """Return a row that `as_json` wrote of this schema's columns."""
    table = read_json(
        pa.BufferReader(text.encode()),
        parse_options=ParseOptions(schema, unexpected_field_behavior="error"),
    )
    (row,) = table.to_pylist()
    return dict(row)

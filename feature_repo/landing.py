"""Landing: rows of a delivery become rows of the raw table, or of quarantine.

A delivery lies in parquet files of a scratch folder. DuckDB works on them within a memory limit,
and Great Expectations judges one batch of rows after the other, so that memory does not grow with
the delivery.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from ibis.backends.sql.datatypes import DuckDBType

from core.errors import BatchRejectedError
from core.files import replace_file
from core.locks import one_writer
from core.settings import Settings
from core.storage import Table
from feature_repo.definition import OWN_PREFIX, POSITION, Dataset
from feature_repo.engines import connected, read_files
from feature_repo.exact_types import UnreadableRow
from feature_repo.features import open_raw, raw_table
from feature_repo.quarantine import (
    as_json,
    leave_quarantine,
    quarantine,
    quarantine_entries,
    quarantine_faults,
    quarantine_table,
)
from feature_repo.source import place
from feature_repo.validation import SINGLE_ROWS, DatasetRules, suite_file
from feature_repo.value_faults import find_faults

BATCH_ROWS = 500_000
"""Rows that Great Expectations judges at a time, about: it holds them in memory."""
MOST_UNREADABLE = 0.01
"""Largest share of unreadable rows in a delivery, from SINGLE_ROWS on."""
MEMORY_LIMIT = "250MB"
"""Memory of DuckDB; beyond it, DuckDB spills to disk."""
FAR = timedelta(days=1)
"""How far after `as_of` a row is dated where a clock is rather wrong than fast."""
COPIES = f"{OWN_PREFIX}copies"
"""Column of how many rows, or contents, a key has."""
TEXT = f"{OWN_PREFIX}text"
"""Column of a row as quarantine has it."""
SET_ASIDE_AT = f"{OWN_PREFIX}quarantined_at"
ROW = f"{OWN_PREFIX}row"
PARQUET = ds.ParquetFileFormat(pre_buffer=False)
"""Reads a file row group by row group, not all of it ahead."""


@dataclass(frozen=True)
class IngestReport:
    """Rows, by what became of them, and the table's version afterwards.

    ahead: rows dated after `as_of`, which are left for a later ingest.
    """

    dataset: str
    as_of: datetime
    inserted: int = 0
    replaced: int = 0
    quarantined: int = 0
    ahead: int = 0
    table_version: int = -1
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        moment = f"{self.as_of:%Y-%m-%d %H:%M} UTC"
        counts = f"{self.inserted} new, {self.replaced} corrected, {self.quarantined} quarantined"
        texts = [f"{self.dataset} as of {moment}: {counts}"]
        if self.ahead:
            texts.append(
                f"rows dated after {moment}, which stay for a later run: {self.ahead}"
            )
        texts.append(f"table version {self.table_version}")
        return "; ".join((*texts, *self.warnings))


def land(
    settings: Settings,
    dataset: Dataset,
    delivery: pa.RecordBatchReader,
    as_of: datetime,
    unreadable: Sequence[UnreadableRow] = (),
) -> IngestReport:
    """Validate the new rows of a delivery; merge the good ones, set the bad ones aside.

    A row in quarantine that comes again is judged again, by the rules of single rows: it lands, or
    stays where it is.

    Great Expectations' Data Docs are in `settings.data_docs`: of the batch that was rejected, else
    of the first one with a warning, else of the first one.

    Args:
        settings: Of the installation whose tables get the rows.
        dataset: Whose rows they are.
        delivery: Rows in the order of the source; of one key the last one counts.
        as_of: When the rows became known; those of the first delivery, at their event time. Rows
            of a later event time are left for a later delivery.
        unreadable: Rows to set aside, once the delivery was read.

    Raises:
        BatchRejectedError: A rule failed as a whole, or many rows are unreadable; nothing was
            changed.
        DataError: The source cannot be read; nothing was changed.

    """
    raw = raw_table(settings, dataset)
    aside = quarantine_table(settings, dataset)
    with _scratch(settings, dataset) as scratch:
        received = scratch.save_delivery(delivery)
        is_ahead = received[dataset.event_time] > ibis.literal(as_of)
        ahead = received.filter(is_ahead)
        delivered = received.anti_join(ahead, POSITION)
        repeated_keys = scratch.save("repeated", _repeated_keys(dataset, delivered))
        earlier_rows = _earlier_rows(dataset, delivered, repeated_keys)
        earlier_rows = scratch.save("earlier", earlier_rows)
        new_rows = delivered.anti_join(earlier_rows, POSITION)
        entries = scratch.save("entries", _entries(dataset, aside, scratch.connection))
        if raw.exists:
            stored = open_raw(raw, connection=scratch.connection)
            new_rows = _unseen_rows(dataset, stored, entries, new_rows)
        new_rows = scratch.save("unseen", new_rows)
        is_same = _same(new_rows, entries, dataset.schema.names)
        again = scratch.save("again", new_rows.semi_join(entries, is_same)).to_pyarrow()
        still_bad = _still_bad_positions(dataset, again, as_of)
        again_positions = set(again[POSITION].to_pylist()) - still_bad
        new_rows = new_rows.filter(~new_rows[POSITION].isin([*still_bad]))
        new_rows = scratch.save("new", new_rows)
        row_count = _count(new_rows)
        unread = _unread_entries(
            settings, dataset, unreadable, _count(delivered), as_of
        )
        is_empty = not (unreadable or _count(received))
        warnings = _remarks(settings, dataset, ahead, as_of, is_empty=is_empty)
        bad_file = scratch.file("bad")
        with pq.ParquetWriter(bad_file, _numbered(aside.schema)) as bad_rows:
            if row_count:
                warnings += _validate(
                    settings=settings,
                    dataset=dataset,
                    batches=_batches(dataset, new_rows, row_count),
                    as_of=as_of,
                    bad_rows=bad_rows,
                )
        warnings += _contradictions(dataset, delivered, repeated_keys, new_rows)
        bad_positions = scratch.connection.read_parquet(bad_file)
        good_rows = new_rows.anti_join(bad_positions, POSITION)
        arrival = as_of if raw.exists else None
        good_rows = _arrived_rows(dataset, good_rows, arrival)
        # An event that lands meanwhile would be a row that these were not tried with.
        with one_writer(settings, raw.name):
            faults = find_faults(
                dataset=dataset,
                connection=scratch.connection,
                rows=good_rows,
                raw=raw,
                exempt_count=len(again_positions),
            )
            is_at_fault = good_rows[POSITION].isin([*faults])
            scratch.save("good", good_rows.filter(~is_at_fault))
            # In this order: after a kill in between the good rows come alone, and not the bad ones.
            quarantine(aside, scratch.dataset("bad"))
            quarantine(aside, unread)
            rows_at_fault = good_rows.filter(is_at_fault).to_pyarrow()
            quarantine_faults(settings, dataset, rows_at_fault, faults, as_of)
            counts = raw.merge(
                scratch.dataset("good"),
                key=dataset.key,
                content=dataset.schema.names,
                arrival="ingested_at",
            )
            _leave_quarantine(dataset, raw, aside, entries, scratch.connection)
        bad_count = pq.read_metadata(bad_file).num_rows + unread.num_rows
        ahead_count = _count(ahead)
    return IngestReport(
        dataset=dataset.name,
        as_of=as_of,
        **counts,
        quarantined=bad_count + len(faults.keys() - again_positions),
        ahead=ahead_count,
        table_version=raw.version,
        warnings=tuple(warnings),
    )


class _Scratch:
    """Rows on their way: parquet files in a folder, which DuckDB reads and writes."""

    def __init__(self, folder: Path, connection: Any) -> None:
        self.connection = connection
        self._folder = folder

    def file(self, name: str) -> Path:
        return self._folder / f"{name}.parquet"

    def dataset(self, name: str) -> ds.Dataset:
        return ds.dataset(self.file(name), format=PARQUET)

    def save(self, name: str, rows: ir.Table) -> ir.Table:
        """Compute rows once, into a file."""
        self.connection.to_parquet(rows, self.file(name))
        return self.connection.read_parquet(self.file(name))

    def save_delivery(self, delivery: pa.RecordBatchReader) -> ir.Table:
        """Write a delivery to a file; its rows get their position."""
        file = self.file("delivered")
        start = 0
        with pq.ParquetWriter(file, _numbered(delivery.schema)) as writer:
            for batch in delivery:
                end = start + batch.num_rows
                positions = pa.array(np.arange(start, end))
                writer.write_batch(batch.append_column(POSITION, positions))
                start = end
        return self.connection.read_parquet(file)


@contextmanager
def _scratch(settings: Settings, dataset: Dataset) -> Iterator[_Scratch]:
    folder = settings.cache / f"{dataset.name}.ingest"
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed ingest
    folder.mkdir(parents=True)
    spill = str(folder / "spill")
    try:
        with connected(memory_limit=MEMORY_LIMIT, temp_directory=spill) as connection:
            yield _Scratch(folder, connection)
    finally:
        shutil.rmtree(folder)


def stop_if_many(
    settings: Settings, dataset: Dataset, problems: Sequence[str], row_count: int
) -> None:
    """Raise a BatchRejectedError if more of `row_count` rows cannot be read than single ones."""
    count = len(problems)
    if count < SINGLE_ROWS or count <= MOST_UNREADABLE * row_count:
        return
    head = f"{dataset.name}: the batch of {place(settings, dataset)} was stopped"
    text = f"{count} of {row_count} rows cannot be read, such as"
    examples = "; ".join(problems[:3])
    raise BatchRejectedError(f"{head}, nothing was changed: {text}: {examples}")


def _unread_entries(
    settings: Settings,
    dataset: Dataset,
    unreadable: Sequence[UnreadableRow],
    readable_count: int,
    as_of: datetime,
) -> pa.Table:
    """Return entries of quarantine for the unreadable rows that it does not hold.

    Raises:
        BatchRejectedError: They are many.

    """
    problems = {row.row: row.problem for row in unreadable}
    aside = quarantine_table(settings, dataset)
    if problems:
        is_known = pc.field("row").isin(list(problems))
        for row in aside.read(columns=["row"], where=is_known)["row"].to_pylist():
            del problems[row]
    texts = list(problems.values())
    stop_if_many(settings, dataset, texts, readable_count + len(texts))
    return quarantine_entries(list(problems), texts, as_of)


def _numbered(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(POSITION, pa.int64()))


def _has_key(dataset: Dataset, rows: ir.Table) -> ir.BooleanValue:
    return ibis.and_(*(rows[name].notnull() for name in dataset.key))


def _repeated_keys(dataset: Dataset, delivered: ir.Table) -> ir.Table:
    """Return the keys that several rows have, each with the position of the last one."""
    rows = delivered.filter(_has_key(dataset, delivered))
    keys = rows.group_by(dataset.key)
    counts = keys.agg({POSITION: rows[POSITION].max(), COPIES: rows.count()})
    return counts.filter(counts[COPIES] > 1)


def _earlier_rows(
    dataset: Dataset, delivered: ir.Table, repeated_keys: ir.Table
) -> ir.Table:
    """Return the positions of rows that do not count, as a later one has their key."""
    rows = delivered.semi_join(repeated_keys, dataset.key)
    return rows.anti_join(repeated_keys, POSITION).select(POSITION)


def _entries(dataset: Dataset, aside: Table, connection: Any) -> ir.Table:
    """Return what quarantine holds: its JSON as TEXT, and the columns of the row."""
    entries = ibis.memtable(aside.schema.empty_table())
    aside_files = aside.names()
    if aside_files:
        entries = read_files(connection, aside, aside_files)
    return _unpacked(
        dataset, entries.select({TEXT: "row", SET_ASIDE_AT: "quarantined_at"})
    )


def _unpacked(dataset: Dataset, texts: ir.Table) -> ir.Table:
    """Add the columns of the rows that TEXT has as JSON; null is what does not fit."""
    schema = ibis.Schema.from_pyarrow(dataset.schema)
    types = {name: DuckDBType.to_string(kind) for name, kind in schema.items()}
    unpack = ibis.udf.scalar.builtin(
        lambda _text, _types: None,
        name="json_transform",
        signature=(("string", "string"), schema.as_struct()),
    )
    rows = texts.mutate({ROW: unpack(texts[TEXT], json.dumps(types))})
    return rows.mutate({name: rows[ROW][name] for name in schema.names}).drop(ROW)


def _unseen_rows(
    dataset: Dataset, stored: ir.Table, entries: ir.Table, rows: ir.Table
) -> ir.Table:
    """Return the rows whose content the table does not hold: new keys and corrections.

    A row that an event corrected was delivered before, into the table or into quarantine.
    """
    names = dataset.schema.names
    by_events = stored.filter(stored.superseded.notnull())
    texts = by_events.filter(by_events.superseded != "")
    superseded = _unpacked(dataset, texts.select({TEXT: "superseded"}))
    is_later = by_events.ingested_at > entries[SET_ASIDE_AT]
    is_same_key = _same(entries, by_events, dataset.key)
    corrected = entries.semi_join(by_events, [is_later, *is_same_key])
    for others in (stored, superseded, corrected):
        rows = rows.anti_join(others, _same(rows, others, names))
    return rows


def _leave_quarantine(
    dataset: Dataset, raw: Table, aside: Table, entries: ir.Table, connection: Any
) -> None:
    """Remove the entries of rows that the table has now, also of those that landed before a kill."""
    if raw.exists and _count(entries):
        stored = open_raw(raw, connection=connection)
        is_same = _same(entries, stored, dataset.schema.names)
        landed = entries.semi_join(stored, is_same)[TEXT].to_pyarrow()
        leave_quarantine(aside, landed.to_pylist())


def _same(rows: ir.Table, others: ir.Table, names: Iterable[str]) -> list[Any]:
    """Return the condition that rows have the same values; a null is one, too."""
    return [rows[name].identical_to(others[name]) for name in names]


def _still_bad_positions(dataset: Dataset, rows: pa.Table, as_of: datetime) -> set[int]:
    """Return the positions of rows that break a rule of single rows."""
    if not rows.num_rows:
        return set()
    content = rows.select(dataset.schema.names).cast(dataset.schema)
    rules = DatasetRules(dataset, for_events=True)
    numbers = pa.array(rules.validate(content, as_of).bad_rows, pa.int64())
    return set(rows[POSITION].take(numbers).to_pylist())


def _remarks(
    settings: Settings,
    dataset: Dataset,
    ahead: ir.Table,
    as_of: datetime,
    *,
    is_empty: bool,
) -> list[str]:
    """Return a warning about a delivery that is empty, or about rows of a wrong clock."""
    if is_empty:
        return [f"{place(settings, dataset)} delivered no rows"]
    far_ahead = ahead.filter(ahead[dataset.event_time] > ibis.literal(as_of + FAR))
    count = _count(far_ahead)
    if not count:
        return []
    return [f"rows dated more than a day ahead: {count}; check the source's clock"]


def _batches(dataset: Dataset, rows: ir.Table, row_count: int) -> Iterator[pa.Table]:
    """Cut rows by a hash of their key.

    Each batch is a sample of all rows, and rows of one key are together: a rule over many rows
    means for a batch what it means for all.
    """
    batch_count = ceil(row_count / BATCH_ROWS)
    key_hash = ibis.struct({name: rows[name] for name in dataset.key}).hash()
    number = _has_key(dataset, rows).ifelse(key_hash, rows[POSITION].hash())
    # Half of the hashes are negative, and so are their remainders.
    batch_number = (number % batch_count).abs()
    for batch in range(batch_count):
        table = rows.filter(batch_number == batch).order_by(POSITION).to_pyarrow()
        if table.num_rows:
            yield table


def _validate(
    settings: Settings,
    dataset: Dataset,
    batches: Iterator[pa.Table],
    as_of: datetime,
    bad_rows: pq.ParquetWriter,
) -> list[str]:
    """Validate batches of rows, write the bad rows with their positions, and return warnings.

    Raises:
        BatchRejectedError: See `land`.

    """
    rules = DatasetRules(dataset)
    page = settings.data_docs / dataset.name / "index.html"
    warnings: dict[str, str] = {}
    for number, batch in enumerate(batches):
        rows = batch.select(dataset.schema.names).cast(dataset.schema)
        validation = rules.validate(rows, as_of)
        is_first_warning = bool(validation.warnings) and not warnings
        if number == 0 or validation.rejections or is_first_warning:
            replace_file(page, validation.page())
        if validation.rejections:
            source = place(settings, dataset)
            head = f"{dataset.name}: the batch of {source} was stopped, nothing was changed"
            text = f"{head}: {'; '.join(validation.rejections)}. Rules: {suite_file(dataset)}"
            raise BatchRejectedError(text)
        for text in validation.warnings:
            rule_name = text.partition(": ")[0]
            warnings.setdefault(rule_name, text)
        numbers = pa.array(validation.bad_rows, pa.int64())
        rules_broken = list(validation.bad_rows.values())
        entries = quarantine_entries(as_json(rows.take(numbers)), rules_broken, as_of)
        positions = batch[POSITION].take(numbers)
        bad_rows.write_table(entries.append_column(POSITION, positions))
    return list(warnings.values())


def _arrived_rows(
    dataset: Dataset, rows: ir.Table, arrival: datetime | None
) -> ir.Table:
    """Return rows of the raw table that arrived at a moment; None: at their event time."""
    event_times = rows[dataset.event_time]
    arrivals = event_times if arrival is None else ibis.literal(arrival)
    return rows.mutate(ingested_at=arrivals)


def _contradictions(
    dataset: Dataset, delivered: ir.Table, repeated_keys: ir.Table, new_rows: ir.Table
) -> list[str]:
    """Return a warning if a delivery holds new keys with several contents."""
    key = list(dataset.key)
    new_keys = repeated_keys.semi_join(new_rows, key)
    contents = delivered.semi_join(new_keys, key).drop(POSITION).distinct()
    content_counts = contents.group_by(key).agg({COPIES: contents.count()})
    keys = content_counts.filter(content_counts[COPIES] > 1).select(key)
    key_count = _count(keys)
    if not key_count:
        return []
    text = f"keys with several contents in one delivery: {key_count}"
    examples = keys.order_by(key).limit(3).to_pyarrow().to_pylist()
    return [f"{text}, such as {examples}; the last row of each counts"]


def _count(rows: ir.Table) -> int:
    return int(rows.count().to_pyarrow().as_py())

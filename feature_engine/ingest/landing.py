"""Landing: rows of a delivery become rows of the raw table, or of quarantine.

A delivery lies in parquet files of a scratch folder. DuckDB works on them within a memory limit,
and Great Expectations judges one batch of rows after the other, so that memory does not grow with
the delivery.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from core.connectors.formats import PARQUET
from core.errors import BatchRejectedError
from core.files import replace_file
from core.locks import one_writer
from core.settings import Settings
from core.tables.table import Table
from feature_engine.engines.duckdb_engine import duckdb_connection
from feature_engine.engines.engine import read_files
from feature_engine.ingest.history import (
    LONG_AGO,
    MARK,
    MICROSECOND,
    History,
    history_of_new_row,
    microseconds,
    read_history,
    write_history,
)
from feature_engine.ingest.quarantine import (
    as_json,
    from_json,
    held_rows,
    leave_quarantine,
    quarantine,
    quarantine_entries,
    quarantine_faults,
    quarantine_table,
)
from feature_engine.ingest.record import IngestReport
from feature_engine.ingest.source import has_source, is_in_order, place
from feature_engine.ingest.topics import LEARNT_AT
from feature_engine.ingest.value_faults import find_faults
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.definition import OWN_PREFIX, POSITION, Dataset
from feature_repo.rules import SINGLE_ROWS, DatasetRules, Validation, suite_file

BATCH_ROWS = 500_000
"""About the number of rows that Great Expectations judges at a time: it holds them in memory."""
UNORDERED = (
    "here nothing tells which row is the last: name the column that grows with each change "
    "(version= of the Dataset), or let a query give one row of each key"
)
UNREADABLE_SHARE = 0.01
"""Largest share of unreadable rows in a delivery, from SINGLE_ROWS on."""
TOPIC_SHARE = 0.5
"""The same of a topic: it may have many deletions, and nobody mends its records."""
MEMORY_LIMIT = "500MB"
"""Memory of DuckDB; beyond it, DuckDB spills to disk.

With 250 MB a full delivery of two million rows failed beside the many small files of events.
"""
FAR = timedelta(days=1)
"""A row dated further after `as_of` comes from a clock that is wrong, not only fast."""
LAST = f"{OWN_PREFIX}last"
"""Column of the position of a key's last row."""
TEXT = f"{OWN_PREFIX}text"
"""Column of a row as quarantine has it, in JSON."""
SAID = f"{OWN_PREFIX}said"
"""Column of what the source said last, in JSON: `true`, the row that counts; null, nothing."""
SET_ASIDE_AT = f"{OWN_PREFIX}quarantined_at"
ROW = f"{OWN_PREFIX}row"


@dataclass(frozen=True)
class DeliveryOrder:
    """Where a delivery stands among events.

    Attributes:
        began: When its reading began, by the broker's clock, aware UTC; None: now.
        may_events_come_late: Says whether an event may still land that was acknowledged before.
        source_wins: Every row counts, whatever events have said before the reading began.
        is_of_topic_alone: The dataset has no other source than its topic.
        are_records: The rows are records of the topic of a dataset that has a source, too. Each is an
            event of the time in its column LEARNT_AT.

    """

    began: datetime | None = None
    may_events_come_late: Callable[[], bool] = bool
    source_wins: bool = False
    is_of_topic_alone: bool = False
    are_records: bool = False

    @property
    def time(self) -> datetime:
        """The beginning, aware UTC."""
        return self.began or datetime.now(UTC)

    @property
    def at(self) -> int:
        """The beginning in microseconds since 1970."""
        return microseconds(self.time)


def land(
    settings: Settings,
    dataset: Dataset,
    delivery: pa.RecordBatchReader,
    as_of: datetime,
    unreadable: Mapping[str, str] = MappingProxyType({}),
    order: "DeliveryOrder | None" = None,
) -> IngestReport:
    """Validate the new rows of a delivery; merge the good ones, set the bad ones aside.

    A row in quarantine that comes again is judged again, by the rules of single rows: it lands, or
    stays where it is.

    `settings.data_docs` gets Great Expectations' page about the batch that was rejected, else about
    the first batch with a warning, else about the first batch.

    Args:
        settings: Settings of the installation whose tables get the rows.
        dataset: The dataset of the rows.
        delivery: Rows in the order of the source; the last row of a key counts.
        as_of: Time at which the rows became known; rows of the first delivery became known at their
            event time. Rows of a later event time are left for a later delivery.
        unreadable: Rows (JSON) to set aside, each with the reason why it cannot be read; complete
            once the delivery was read.
        order: Where the delivery stands among events; None: it is newer than all of them.

    Raises:
        BatchRejectedError: A rule failed as a whole, or many rows are unreadable; nothing was
            changed.
        DataError: The source cannot be read; nothing was changed.

    """
    with _landing(settings, dataset, as_of, order or DeliveryOrder()) as landing:
        received = landing.receive(delivery)
        ahead = received.filter(received[dataset.event_time] > as_of)
        due = received.anti_join(ahead, POSITION)
        selection = landing.select(due)
        unread = landing.unread_entries(unreadable, _count(due))
        is_empty = not (unreadable or _count(received))
        warnings = landing.remarks(ahead, is_empty=is_empty)
        warnings += landing.validate(selection.new_rows)
        if _count(selection.earlier_rows):
            # Also if the row that happens to be read last repeats the table's.
            last_rows = due.anti_join(selection.earlier_rows, POSITION)
            problem = _contradictions(dataset, selection.earlier_rows, last_rows)
            if problem and not (dataset.version or is_in_order(settings, dataset)):
                raise _rejection(settings, dataset, f"{problem}; {UNORDERED}")
            problem = _contradictions(
                dataset, selection.earlier_rows, selection.new_rows
            )
            if problem:
                warnings.append(f"{problem}; the last row of each counts")
        counts = landing.commit(selection, unread)
        return IngestReport(
            dataset=dataset.name,
            as_of=as_of,
            **counts,
            ahead=_count(ahead),
            behind=landing.count_behind(),
            table_version=landing.raw.version,
            warnings=tuple(warnings),
        )


def in_batches(
    rows: ir.Table, key: Sequence[str], order: str | None = None
) -> Iterator[pa.Table]:
    """Cut rows by a hash of their key into batches of about BATCH_ROWS.

    A batch is a sample of all rows, and rows of one key are together: a rule over many rows has
    the same meaning for a batch as for all rows.

    Args:
        rows: Rows to cut.
        key: Columns of the key. Rows in which one is null are cut by `order`.
        order: Column by which the rows of a batch are ordered; None: in any order.

    """
    row_count = _count(rows)
    batch_count = ceil(row_count / BATCH_ROWS)
    number = ibis.struct({name: rows[name] for name in key}).hash()
    if order:
        has_key = ibis.and_(*(rows[name].notnull() for name in key))
        number = has_key.ifelse(number, rows[order].hash())
    # Half of the hashes are negative, and so are their remainders.
    batch_number = (number % batch_count).abs()
    for batch in range(batch_count):
        part = rows.filter(batch_number == batch)
        table = (part.order_by(order) if order else part).to_pyarrow()
        if table.num_rows:
            yield table


def stop_if_many(
    settings: Settings,
    dataset: Dataset,
    unreadable: Mapping[str, str],
    readable_count: int,
) -> None:
    """Raise a BatchRejectedError if many rows cannot be read."""
    count = len(unreadable)
    row_count = readable_count + count
    share = UNREADABLE_SHARE if has_source(settings, dataset) else TOPIC_SHARE
    if count >= SINGLE_ROWS and count > share * row_count:
        examples = "; ".join([*unreadable.values()][:3])
        text = f"{count} of {row_count} rows cannot be read, such as: {examples}"
        raise _rejection(settings, dataset, text)


def _rejection(settings: Settings, dataset: Dataset, text: str) -> BatchRejectedError:
    head = f"{dataset.name}: the batch of {place(settings, dataset)} was stopped"
    return BatchRejectedError(f"{head}, nothing was changed: {text}")


@dataclass(frozen=True)
class _Selection:
    """The rows of a delivery that are to land.

    Attributes:
        new_rows: Rows to validate: their content is new to the table and, unless they pass today's
            rules, to quarantine.
        earlier_rows: Rows that do not count, as a later row of the delivery has their key.
        entries: Quarantine before the delivery, see `_Landing.entries`.
        again_count: Number of the new rows that quarantine holds.

    """

    new_rows: ir.Table
    earlier_rows: ir.Table
    entries: ir.Table
    again_count: int


@dataclass(frozen=True)
class _Landing:
    """The steps of a delivery, which share its tables and a scratch folder.

    Attributes:
        settings: See `land`.
        dataset: See `land`.
        as_of: See `land`.
        raw: The table that rows land in.
        aside: The table of quarantine.
        connection: Connection to DuckDB.
        folder: Folder of parquet files, which DuckDB reads and writes.
        order: See `land`.

    """

    settings: Settings
    dataset: Dataset
    as_of: datetime
    raw: Table
    aside: Table
    connection: Any
    folder: Path
    order: DeliveryOrder

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def save(self, name: str, rows: ir.Table) -> ir.Table:
        """Compute rows once, into a file."""
        self.connection.to_parquet(rows, self.file(name))
        return self.connection.read_parquet(self.file(name))

    def receive(self, delivery: pa.RecordBatchReader) -> ir.Table:
        """Write a delivery to a file; its rows get their position."""
        file = self.file("delivered")
        start = 0
        with pq.ParquetWriter(file, _numbered(delivery.schema)) as writer:
            for batch in delivery:
                end = start + batch.num_rows
                positions = pa.arange(start, end)
                writer.write_batch(batch.append_column(POSITION, positions))
                start = end
        return self.connection.read_parquet(file)

    def select(self, delivered: ir.Table) -> _Selection:
        """Select the rows to validate."""
        earlier_rows = self.save("earlier", _earlier_rows(self.dataset, delivered))
        entries = self.save("entries", self.entries())
        last_rows = delivered.anti_join(earlier_rows, POSITION)
        unseen_rows = self.save("unseen", self.unseen_rows(last_rows, entries))
        bad_positions, again_count = self.judge_again(unseen_rows, entries)
        is_bad = unseen_rows[POSITION].isin(bad_positions)
        return _Selection(
            new_rows=self.save("new", unseen_rows.filter(~is_bad)),
            earlier_rows=earlier_rows,
            entries=entries,
            again_count=again_count,
        )

    def entries(self) -> ir.Table:
        """Return the entries of quarantine: the JSON as TEXT, and the columns of the row."""
        entries = read_files(self.connection, self.aside, self.aside.names())
        columns = {TEXT: "row", SET_ASIDE_AT: "quarantined_at"}
        return _unpacked(self.dataset, entries.select(columns))

    def unseen_rows(self, rows: ir.Table, entries: ir.Table) -> ir.Table:
        """Return the rows that the source did not say before: new keys, and other contents.

        A row that an event corrected was delivered before, into the table or into quarantine.
        """
        if not self.raw.exists:
            return rows
        stored = open_raw(self.connection, self.raw)
        former_tables = [stored]
        by_events = stored.filter(stored.superseded.notnull())
        if _count(by_events):
            former_tables = self._said_before(stored, entries)
        for former_rows in former_tables:
            is_same = _same(rows, former_rows, self.dataset.schema.names)
            rows = rows.anti_join(former_rows, is_same)
        return self.without_older_versions(rows)

    def _said_before(self, stored: ir.Table, entries: ir.Table) -> list[ir.Table]:
        """Return tables of the rows that the source said before, where there were events."""
        text = stored.superseded
        document = text.nullif("").cast("json")
        is_history = text.startswith(f'{{"{MARK}"')
        said = is_history.ifelse(document["said"].cast("string"), text)
        sent = is_history.ifelse(document["sent"].cast("string"), "true")
        stored = stored.mutate({SAID: said})
        # The source said the row that counts, or another one.
        is_said = stored.superseded.isnull()
        if self.order.source_wins:
            return [stored.filter(is_said)]
        is_said |= stored[SAID] == "true"
        is_other = stored[SAID].startswith("{")
        other_texts = stored.filter(is_other).select({TEXT: SAID})
        other_rows = _unpacked(self.dataset, other_texts)
        events = stored.filter(text.notnull(), sent == "true")
        is_later = events.ingested_at > entries[SET_ASIDE_AT]
        is_same_key = _same(entries, events, self.dataset.key)
        corrected = entries.semi_join(events, [is_later, *is_same_key])
        return [stored.filter(is_said), corrected, other_rows]

    def without_older_versions(self, rows: ir.Table) -> ir.Table:
        """Leave out rows whose version is below that of the table's row, or that of an event's row."""
        version = self.dataset.version
        if version is None or not self.raw.exists:
            return rows
        stored = open_raw(self.connection, self.raw)
        is_older = rows[version] < stored[version]
        is_older |= rows[version].isnull() & stored[version].notnull()
        if not self.order.source_wins:
            is_same_version = rows[version].identical_to(stored[version])
            is_older |= is_same_version & stored.superseded.notnull()
        same_key = _same(rows, stored, self.dataset.key)
        return rows.anti_join(stored, [*same_key, is_older])

    def without_older_records(self, rows: ir.Table) -> ir.Table:
        """Leave out records of a topic that an event has followed since the reading began."""
        is_ordered = self.dataset.version or not self.order.is_of_topic_alone
        if is_ordered or not self.raw.exists:
            return rows
        stored = open_raw(self.connection, self.raw)
        events = stored.filter(stored.ingested_at > self.order.time)
        return rows.anti_join(events, _same(rows, events, self.dataset.key))

    def judge_again(self, rows: ir.Table, entries: ir.Table) -> tuple[list[int], int]:
        """Judge rows that quarantine holds by the rules of single rows.

        Returns:
            The positions of rows that stay there, and the number of rows that do not.

        """
        names = self.dataset.schema.names
        again = rows.semi_join(entries, _same(rows, entries, names)).to_pyarrow()
        if not again.num_rows:
            return [], 0
        rules = DatasetRules(self.dataset, for_events=True)
        validation = rules.validate(again.select(names), self.as_of)
        bad_rows = again.take(pa.array(validation.bad_rows, pa.int64()))
        return bad_rows[POSITION].to_pylist(), again.num_rows - bad_rows.num_rows

    def unread_entries(
        self, unreadable: Mapping[str, str], readable_count: int
    ) -> pa.Table:
        """Return entries of quarantine for the unreadable rows that it does not hold.

        Raises:
            BatchRejectedError: There are many.

        """
        problems = dict(unreadable)
        if problems:
            for row in held_rows(self.aside, list(problems))["row"].to_pylist():
                del problems[row]
        stop_if_many(self.settings, self.dataset, problems, readable_count)
        return quarantine_entries(list(problems), list(problems.values()), self.as_of)

    def remarks(self, ahead: ir.Table, *, is_empty: bool) -> list[str]:
        """Return a warning about a delivery that is empty, or that has rows of a wrong clock."""
        if is_empty:
            return [f"{place(self.settings, self.dataset)} delivered no rows"]
        limit = self.as_of + FAR
        count = _count(ahead.filter(ahead[self.dataset.event_time] > limit))
        if not count:
            return []
        return [f"rows dated more than a day ahead: {count}; check the source's clock"]

    def validate(self, rows: ir.Table) -> list[str]:
        """Validate rows, write the bad ones with their positions, and return warnings.

        The results by rule lie beside the page, of the same batch.

        Raises:
            BatchRejectedError: A rule failed as a whole.

        """
        page = self.settings.data_docs / self.dataset.name / "index.html"
        warnings: dict[str, str] = {}
        with pq.ParquetWriter(self.file("bad"), _numbered(self.aside.schema)) as bad:
            for number, (batch, validation) in enumerate(self._validations(rows)):
                is_first_warning = bool(validation.warnings) and not warnings
                if number == 0 or validation.rejections or is_first_warning:
                    replace_file(page, validation.page())
                    results = {
                        "as_of": self.as_of,
                        "rows": batch.num_rows,
                        "rules": validation.results,
                    }
                    text = json.dumps(results, default=str)
                    replace_file(page.with_suffix(".json"), text)
                if validation.rejections:
                    suite = f"Rules: {suite_file(self.dataset)}"
                    text = f"{'; '.join(validation.rejections)}. {suite}"
                    raise _rejection(self.settings, self.dataset, text)
                for text in validation.warnings:
                    rule_name = text.partition(": ")[0]
                    warnings.setdefault(rule_name, text)
                broken_rules = list(validation.bad_rows.values())
                bad_rows = batch.take(pa.array(validation.bad_rows, pa.int64()))
                texts = as_json(bad_rows.select(self.dataset.schema.names))
                entries = quarantine_entries(texts, broken_rules, self.as_of)
                bad.write_table(entries.append_column(POSITION, bad_rows[POSITION]))
        return list(warnings.values())

    def _validations(self, rows: ir.Table) -> Iterator[tuple[pa.Table, Validation]]:
        """Validate rows, a batch of some keys at a time."""
        if not _count(rows):
            return
        rules = DatasetRules(self.dataset)
        for table in in_batches(rows, self.dataset.key, POSITION):
            content = table.select(self.dataset.schema.names)
            yield table, rules.validate(content, self.as_of)

    def commit(self, selection: _Selection, unread: pa.Table) -> dict[str, Any]:
        """Set rows aside, merge the others, and count both.

        Args:
            selection: Rows that were validated.
            unread: Entries of quarantine for unreadable rows.

        """
        counts: dict[str, Any] = {"inserted": 0, "replaced": 0, "quarantined": 0}
        # An event that lands meanwhile would be a row that these were not tried with.
        with one_writer(self.settings, self.raw.name):
            if unread.num_rows or _count(selection.new_rows):
                counts = self._commit_rows(selection, unread)
            self._release_landed(selection.entries)
        return counts

    def _commit_rows(self, selection: _Selection, unread: pa.Table) -> dict[str, Any]:
        bad_entries = self.connection.read_parquet(self.file("bad"))
        # Rows without a key may be equal.
        single_entries = bad_entries.distinct(on="row", keep="first")
        self.save("aside", single_entries.drop(POSITION))
        rows = selection.new_rows.anti_join(bad_entries, POSITION)
        arrival = rows[self.dataset.event_time]  # for rows of the first delivery
        if self.raw.exists:
            arrival = ibis.literal(self.as_of)
        rows = rows.mutate(ingested_at=arrival)
        rows = self.without_older_versions(rows)
        rows = self.without_older_records(rows)
        settled = self.settle(rows)
        if self.order.are_records:
            rows = rows.drop(LEARNT_AT)
        if settled.no_news:
            no_news = ibis.memtable({POSITION: settled.no_news})
            rows = self.save("news", rows.anti_join(no_news, POSITION))
        faults = find_faults(
            self.dataset, self.connection, rows, self.raw, selection.again_count
        )
        is_at_fault = rows[POSITION].isin([*faults])
        good_rows = rows.filter(~is_at_fault)
        histories = pa.table(
            {
                POSITION: pa.array(settled.histories, pa.int64()),
                "superseded": pa.array(settled.histories.values(), pa.string()),
            }
        )
        good_rows = good_rows.left_join(ibis.memtable(histories), POSITION)
        of_new_key = ibis.literal(settled.of_new_key, "string")
        good_rows = good_rows.mutate(
            superseded=good_rows.superseded.coalesce(of_new_key)
        )
        self.save("good", good_rows.drop(f"{POSITION}_right"))
        pq.write_table(settled.kept_rows, self.file("kept"))
        # In this order: after a kill in between the good rows come alone, and not the bad ones.
        bad_count = quarantine(self.aside, self._dataset("aside"))
        bad_count += quarantine(self.aside, unread)
        rows_at_fault = rows.filter(is_at_fault).to_pyarrow()
        bad_count += quarantine_faults(
            self.aside, self.dataset, rows_at_fault, faults, self.as_of
        )
        counts = self.raw.merge(
            self._dataset("good", "kept"),
            key=self.dataset.key,
            content=[*self.dataset.schema.names, "superseded"],
        )
        counts["replaced"] -= settled.kept_rows.num_rows
        return counts | {"quarantined": bad_count}

    def _release_landed(self, entries: ir.Table) -> None:
        """Remove entries of quarantine whose rows the table holds, also since a kill."""
        if self.raw.exists and _count(entries):
            stored = open_raw(self.connection, self.raw)
            is_same = _same(entries, stored, self.dataset.schema.names)
            landed = entries.semi_join(stored, is_same)[TEXT].to_pyarrow()
            leave_quarantine(self.aside, landed.to_pylist())

    def settle(self, rows: ir.Table) -> "_Settled":
        """Say of rows of keys about which there were events whether they count.

        Called while nobody else writes the table.
        """
        nothing = _Settled([], {}, self.raw.schema.empty_table())
        if self.dataset.version:
            return nothing
        are_records = self.order.are_records
        may_come_late = are_records or self.order.may_events_come_late()
        if may_come_late:
            of_new_key = history_of_new_row(self.order.at)
            nothing = replace(nothing, of_new_key=of_new_key)
        key = list(self.dataset.key)
        old_table = self.raw.schema.empty_table()
        if self.raw.exists:
            stored = open_raw(self.connection, self.raw)
            if not may_come_late:
                stored = stored.filter(stored.superseded.notnull())
            old_table = stored.semi_join(rows, key).to_pyarrow()
            old_table = old_table.select(self.raw.schema.names).cast(self.raw.schema)
        if not (are_records or old_table.num_rows):
            return nothing
        columns = [POSITION, *self.dataset.schema.names]
        if are_records:
            new_rows = rows.select(*columns, LEARNT_AT)
        else:
            old_keys = ibis.memtable(old_table.select(key))
            new_rows = rows.semi_join(old_keys, key).select(columns)
        settled = self._settle(
            old_table, new_rows.to_pyarrow(), may_come_late=may_come_late
        )
        return replace(settled, of_new_key=nothing.of_new_key)

    def _settle(
        self, old_table: pa.Table, new_table: pa.Table, *, may_come_late: bool
    ) -> "_Settled":
        """Say of rows whose keys the table has, and of each record of a topic, whether they count.

        Args:
            old_table: The table's rows.
            new_table: Rows of the delivery, with POSITION; records have LEARNT_AT, too.
            may_come_late: Whether an event may still land that was acknowledged before.

        """
        key = self.dataset.key
        names = self.dataset.schema.names
        old_rows = old_table.to_pylist()
        old_texts = as_json(old_table.select(names))
        old_by_key = {
            tuple(row[name] for name in key): (row, text)
            for row, text in zip(old_rows, old_texts, strict=True)
        }
        no_old_row: tuple[dict[str, Any] | None, str] = (None, "")
        lag = self.dataset.lag // MICROSECOND
        began = self.order.at
        no_news = []
        histories = {}
        kept_rows = []
        new_texts = as_json(new_table.select(names))
        for new, text in zip(new_table.to_pylist(), new_texts, strict=True):
            row_key = tuple(new[name] for name in key)
            old, old_text = old_by_key.get(row_key, no_old_row)
            history = History()
            if old is not None:
                # A record may be older than the row.
                arrival = microseconds(old["ingested_at"])
                row_time = arrival if self.order.are_records else LONG_AGO
                history = read_history(old["superseded"], old_text, row_time)
            if self.order.source_wins:
                history = history.since(began)
            if self.order.are_records:
                history = history.with_event(microseconds(new[LEARNT_AT]), text)
            else:
                history = history.with_delivery(began, text)
            history = history.pruned(began, lag, may_come_late=may_come_late)
            counting_text = history.counting_row(lag)
            superseded = None
            if may_come_late or not history.is_plain:
                superseded = write_history(history, counting_text)
            if old is None or counting_text == text != old_text:
                histories[new[POSITION]] = superseded
                continue
            no_news.append(new[POSITION])
            kept = old | {"superseded": superseded}
            if counting_text != old_text:
                kept |= from_json(counting_text, self.dataset.schema)
            if kept != old:
                kept_rows.append(kept)
        return _Settled(
            no_news, histories, pa.Table.from_pylist(kept_rows, self.raw.schema)
        )

    def count_behind(self) -> int:
        """Count the keys of which the source has said another row for too long."""
        if self.dataset.version or not self.raw.exists:
            return 0
        stored = open_raw(self.connection, self.raw)
        document = stored.superseded.nullif("").cast("json")
        other = stored.filter(document["said"].cast("string").startswith("{"))
        rows = other.to_pyarrow()
        texts = as_json(rows.select(self.dataset.schema.names))
        histories = map(read_history, rows["superseded"].to_pylist(), texts)
        lag = self.dataset.lag // MICROSECOND
        began = self.order.at
        return sum(history.is_behind(began, lag) for history in histories)

    def _dataset(self, *names: str) -> ds.Dataset:
        return ds.dataset([self.file(name) for name in names], format=PARQUET)


@dataclass(frozen=True)
class _Settled:
    """Rows of keys about which there were events.

    Attributes:
        no_news: Positions of rows that do not count.
        histories: Value of `superseded` of rows that count, by their position.
        kept_rows: Rows of the table that stay, with what is known of them now.
        of_new_key: Value of `superseded` of a row with a new key, about which an event may have been
            acknowledged before.

    """

    no_news: list[int]
    histories: dict[int, str | None]
    kept_rows: pa.Table
    of_new_key: str | None = None


@contextmanager
def _landing(
    settings: Settings, dataset: Dataset, as_of: datetime, order: DeliveryOrder
) -> Iterator[_Landing]:
    folder = settings.cache / f"{dataset.name}.ingest"
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed ingest
    folder.mkdir(parents=True)
    spill = str(folder / "spill")
    try:
        with duckdb_connection(
            memory_limit=MEMORY_LIMIT, temp_directory=spill
        ) as connection:
            yield _Landing(
                settings=settings,
                dataset=dataset,
                as_of=as_of,
                raw=raw_table(settings, dataset),
                aside=quarantine_table(settings, dataset),
                connection=connection,
                folder=folder,
                order=order,
            )
    finally:
        shutil.rmtree(folder)


def _numbered(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(POSITION, pa.int64()))


def _unpacked(dataset: Dataset, texts: ir.Table) -> ir.Table:
    """Add the columns of the rows that TEXT has as JSON; a value that does not fit becomes null."""
    row_type = ibis.schema(dataset.schema).as_struct()
    rows = texts[TEXT].cast("json").try_cast(row_type)
    texts = texts.mutate({ROW: rows})
    values = {name: texts[ROW][name] for name in dataset.schema.names}
    return texts.mutate(values).drop(ROW)


def _earlier_rows(dataset: Dataset, delivered: ir.Table) -> ir.Table:
    """Return the rows that do not count, as a later row has their key, or one of a higher version."""
    keys = delivered.group_by(dataset.key).having(lambda rows: rows.count() > 1)
    if dataset.version:
        order = [ibis.asc(dataset.version, nulls_first=True), POSITION]
        last = delivered[POSITION].last(order_by=order)
        last_rows = keys.agg({LAST: last})
        is_other = delivered[POSITION] != last_rows[LAST]
        return delivered.semi_join(last_rows, [*dataset.key, is_other])
    last_rows = keys.agg({LAST: delivered[POSITION].max()})
    is_earlier = delivered[POSITION] < last_rows[LAST]
    return delivered.semi_join(last_rows, [*dataset.key, is_earlier])


def _same(rows: ir.Table, others: ir.Table, names: Iterable[str]) -> list[Any]:
    """Return the condition that rows have the same values, where null equals null."""
    return [rows[name].identical_to(others[name]) for name in names]


def _contradictions(
    dataset: Dataset, earlier_rows: ir.Table, rows: ir.Table
) -> str | None:
    """Return a message about the keys of rows of which earlier rows have another content."""
    key = list(dataset.key)
    is_same = _same(earlier_rows, rows, dataset.schema.names)
    other_rows = earlier_rows.anti_join(rows, is_same)
    other_rows = other_rows.semi_join(rows, key)
    keys = other_rows.select(key).distinct()
    key_count = _count(keys)
    if not key_count:
        return None
    text = f"keys with several contents in one delivery: {key_count}"
    examples = keys.order_by(key).limit(3).to_pyarrow().to_pylist()
    return f"{text}, such as {examples}"


def _count(rows: ir.Table) -> int:
    return int(rows.count().execute())

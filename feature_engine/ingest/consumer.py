"""`gyre consume`: events from the broker into raw table, features and online store.

A micro-batch has the events that wait, at most 1,000. It begins 200 ms after the last one began, or
later. Its rows are validated by the rules of single rows, merged by key, brought online and
acknowledged last: a consumer that dies on the way gets the same entries again, and they change
nothing.

Which row of a key counts, feature_engine/ingest/history.py says. An event is as old as the broker
says, also if it lands late.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import pyarrow as pa
from redis.exceptions import RedisError

from core.errors import RegistryError
from core.locks import one_writer
from core.project import PROJECT
from core.settings import Settings
from core.user_code import DATASETS, change_times, in_one_line, makes_dataset
from feature_engine.engines.engine import VALUE_ERRORS, value_error
from feature_engine.events.broker import broker, broker_time, show_life, withdraw
from feature_engine.events.interface import Entry
from feature_engine.ingest.forgotten import ForgottenFile
from feature_engine.ingest.history import (
    LONG_AGO,
    MICROSECOND,
    History,
    microseconds,
    read_history,
    write_history,
)
from feature_engine.ingest.key_values import ForgottenRecords
from feature_engine.ingest.quarantine import (
    as_json,
    from_json,
    leave_quarantine,
    quarantine,
    quarantine_entries,
    quarantine_table,
)
from feature_engine.ingest.source import has_source
from feature_engine.ingest.topics import row_reader, text_set_aside
from feature_engine.offline.raw import raw_table
from feature_engine.online.entity_values import Row, key_of, raw_rows
from feature_engine.online.values import OnlineValues
from feature_engine.online.window_ends import WindowEnds
from feature_engine.online.writer import ViewValues
from feature_repo.datasets import load_datasets
from feature_repo.definition import Dataset
from feature_repo.event_schema import event_schema
from feature_repo.online_store import redis_client, redis_problem
from feature_repo.rules import DatasetRules

MAX_ROWS = 1_000
MAX_UNREADABLE = 100
"""Entries of a batch that cannot be read: each is copied, and few of them mean much work."""
BATCH_SECONDS = 0.2
REDIS_SECONDS = 0.5
"""Time that Redis may take for one command."""
IDLE_SECONDS = 1.0
CLOCKS_DIFFER = timedelta(seconds=60)
"""How far an event may be dated ahead of our clock."""
MAX_DELIVERIES = 300
"""Deliveries of a batch that fails, about one a second: a disk or a lock may become free."""
COMPACT_AFTER = 100
"""Micro-batches, each a file of the raw table, after which the small files are made one."""
VALIDATION = threading.Lock()
"""Great Expectations keeps its context for the whole process."""
logger = logging.getLogger(__name__)


def consume(settings: Settings) -> None:
    """Consume the events of every dataset until SIGTERM or SIGINT, or until the project changes.

    Each dataset has a thread, so that none waits for another. When a file of the project has
    changed and stays the same for a second, the command starts again in its process, as the files
    say what events mean.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    problem = redis_problem(settings)
    if problem:
        logger.error("Redis at %s", problem)
    start_times = change_times()
    consumers = _consumers(settings)
    schemas = [consumer.schema for consumer in consumers]
    threads = []
    for consumer in consumers:
        thread = threading.Thread(target=consumer.run, args=[stop], daemon=True)
        thread.start()
        threads.append(thread)
    names = [consumer.name for consumer in consumers]
    logger.info("consuming events of %s", ", ".join(names))
    redis = redis_client(settings)
    times = start_times
    is_outdated = False
    is_published = False
    while not (is_outdated or stop.is_set()):
        with suppress(RedisError):  # each thread says so
            # Always: a Redis that lost its data has no schemas.
            if not is_published:
                modules = filter(makes_dataset, DATASETS.glob("*.py"))
                names = [module.stem for module in modules]
                for name in withdraw(redis, names):
                    logger.info("%s is gone from the project: takes no events", name)
            show_life(redis, schemas)
            is_published = True
        stop.wait(IDLE_SECONDS)
        last_times = times
        times = change_times()
        is_outdated = start_times != times == last_times
    stop.set()
    for thread in threads:
        thread.join()
    if is_outdated:
        changes = dict(start_times.items() ^ times.items())
        files = ", ".join(sorted(str(file.relative_to(PROJECT)) for file in changes))
        logger.info("starting again, as these have changed: %s", files)
        os.execvp(sys.argv[0], sys.argv)  # noqa: S606  (no shell)


def _consumers(settings: Settings) -> list["EventConsumer"]:
    datasets, problems = load_datasets()
    consumers = []
    for dataset in datasets:
        try:
            consumers.append(EventConsumer(settings, dataset))
        except Exception as exc:  # noqa: BLE001  (of a suite, too: the others' events are consumed)
            problems.append(f"{dataset.name}: {in_one_line(exc)}")
    for problem in problems:
        logger.error("takes no events: %s", problem)
    return consumers


class EventConsumer:
    """The events of one dataset, and its values that change by themselves."""

    def __init__(
        self, settings: Settings, dataset: Dataset, consumer: str | None = None
    ) -> None:
        """Make a consumer; its name, by default the host's, is the same after a restart."""
        self.name = dataset.name
        self._settings = settings
        self._dataset = dataset
        self._raw = raw_table(settings, dataset)
        self._quarantine = quarantine_table(settings, dataset)
        self._forgotten = ForgottenFile(settings)
        self._rules = DatasetRules(dataset, for_events=True)
        self.schema = event_schema(dataset, self._rules.never_null)
        self._rows_of = row_reader(settings, dataset, self.schema)
        self.stream = broker(settings).stream(
            self.schema, consumer or socket.gethostname()
        )
        self._has_source = has_source(settings, dataset)
        self._batch_count = 0
        self._has_failed = False

    @cached_property
    def _online(self) -> OnlineValues:
        """The online values. They are opened at the first batch: before, there may be no store."""
        return OnlineValues(self._settings, self._dataset, self._raw, REDIS_SECONDS)

    @cached_property
    def _window_ends(self) -> WindowEnds:
        return WindowEnds(self._online)

    def run(self, stop: threading.Event) -> None:
        """Process events until `stop` is set."""
        while not stop.is_set():
            start = time.monotonic()
            try:
                # Always: a Redis that lost its data has no group.
                self.stream.declare()
                if self.step():
                    stop.wait(start + BATCH_SECONDS - time.monotonic())
                else:
                    self.stream.wait(self.idle_seconds())
            except Exception as exc:  # noqa: BLE001  (of a broker, of a bucket: it may come back)
                logger.warning("%s: %s: %s", self.name, type(exc).__name__, exc)
                stop.wait(IDLE_SECONDS)
        self.stream.close()

    def step(self) -> bool:
        """Process events that wait and values that are due; return whether there were any.

        A part that fails is tried again at the next step, and does not hold up the other.
        """
        self._has_failed = False
        if not self._raw.exists:  # events wait for the first ingest
            return False
        broker_time(self._settings)
        entries = self.stream.read()
        are_processed = bool(entries) and self._try(lambda: self._step_events(entries))
        are_ended = self._try(lambda: self._window_ends.step(datetime.now(UTC)))
        return are_processed or are_ended

    def _try(self, part: Callable[[], bool]) -> bool:
        try:
            return part()
        except RedisError:
            raise
        except Exception as exc:  # noqa: BLE001  (a disk, a lock, an expression: not the events)
            logger.warning(
                "%s: tried again: %s: %s", self.name, type(exc).__name__, exc
            )
            self._has_failed = True
            return False

    def _step_events(self, entries: Sequence[Entry]) -> bool:
        batch, unreadable = self._batch(entries)
        oldest_entry = next(iter(batch))
        deliveries = self.stream.deliveries(oldest_entry)
        self._process(batch, is_last_try=deliveries > MAX_DELIVERIES)
        if unreadable:
            self._reject(unreadable, oldest_entry.arrival)
        self.stream.acknowledge(list(batch))
        self._batch_count += 1
        if self._batch_count % COMPACT_AFTER == 0:
            self._raw.compact()
        return True

    def idle_seconds(self) -> float:
        """Return how long this consumer may wait for the next event."""
        if self._has_failed or not self._raw.exists:
            return IDLE_SECONDS
        next_time = self._window_ends.next_time()
        if next_time is None:
            return IDLE_SECONDS
        seconds = (next_time - datetime.now(UTC)).total_seconds()
        return min(max(seconds, 0.0), IDLE_SECONDS)

    def _batch(
        self, entries: Sequence[Entry]
    ) -> tuple[dict[Entry, list[Row]], dict[Entry, str]]:
        """Read the first entries, with at most 1,000 rows together; others are read again.

        Returns:
            The rows of each entry, and the reason why an entry cannot be read.

        """
        batch: dict[Entry, list[Row]] = {}
        unreadable: dict[Entry, str] = {}
        row_count = 0
        for entry in entries:
            rows: list[Row] = []
            reason = ""
            try:
                rows = self._parse(entry)
            except ValueError as exc:
                # Serving did not send it, or the dataset had other columns then.
                reason = _reason(exc)
            row_count += len(rows)
            if batch and (row_count > MAX_ROWS or len(unreadable) == MAX_UNREADABLE):
                break
            batch[entry] = rows
            if reason:
                unreadable[entry] = reason
        return batch, unreadable

    def _parse(self, entry: Entry) -> list[Row]:
        events = self._rows_of(entry.events)
        arrival = {"ingested_at": entry.arrival}
        return [event | arrival for event in events]

    def _reject(self, reasons: Mapping[Entry, str], at: datetime) -> None:
        """Set aside entries that cannot be read, each with the reason.

        One whose key can be read, and is forgotten, is dropped.
        """
        forgotten_records = ForgottenRecords(
            self._settings, self._dataset, self._forgotten.read()
        )
        kept_reasons = {
            entry: reason
            for entry, reason in reasons.items()
            if not forgotten_records.have_record(entry.events)
        }
        if not kept_reasons:
            return
        self.stream.reject(kept_reasons)
        texts = [text_set_aside(entry.place, entry.events) for entry in kept_reasons]
        self._set_aside(texts, at, [*kept_reasons.values()])

    def _process(self, batch: Mapping[Entry, list[Row]], *, is_last_try: bool) -> None:
        """Land the rows of a batch.

        Where a value is at fault, or the batch has failed too often, each entry lands alone, and
        the rows of an entry that fails again go to quarantine.
        """
        rows = list(chain.from_iterable(batch.values()))
        if not rows:
            return
        try:
            # `gyre forget` had the lock before, or waits for it.
            with self._online.lock():
                forgotten_keys = self._forgotten.read()
                rows = [row for row in rows if not forgotten_keys.has(row)]
                self._land(rows)
        except (RedisError, RegistryError):  # they say nothing of a row
            raise
        except Exception as exc:
            if not is_last_try and not isinstance(exc, VALUE_ERRORS):
                raise
            if len(batch) == 1:
                texts = as_json(self._source_rows(rows))
                reasons = [_reason(exc)] * len(texts)
                self._set_aside(texts, rows[0]["ingested_at"], reasons)
                return
            for entry, entry_rows in batch.items():
                self._process({entry: entry_rows}, is_last_try=is_last_try)

    def _land(self, rows: Sequence[Row]) -> None:
        """Set aside rows that break a rule; merge the others and bring their entities online."""
        if not rows:
            return
        now = max(row["ingested_at"] for row in rows)
        source_rows = self._source_rows(rows)
        with VALIDATION:
            validation = self._rules.validate(source_rows, now + CLOCKS_DIFFER)
        broken_rules = validation.bad_rows
        texts = as_json(source_rows)
        broken_texts = [texts[number] for number in broken_rules]
        entries = quarantine_entries(broken_texts, list(broken_rules.values()), now)
        quarantine(self._quarantine, entries)
        good_events = [
            _Known(row, texts[number])
            for number, row in enumerate(rows)
            if number not in broken_rules
        ]
        if good_events:
            # A superseded row has to be the one that the table holds.
            with one_writer(self._settings, self._raw.name):
                values = self._merge(good_events, now)
                raw_version = self._raw.version
            leave_quarantine(self._quarantine, [event.text for event in good_events])
            self._online.writer.write(values, raw_version)
            self._window_ends.add(values)

    def _merge(self, events: Sequence["_Known"], now: datetime) -> list[ViewValues]:
        """Merge rows into the raw table; return the feature values of their entities.

        The values come first: a row that no expression can take must not stand in the table.
        """
        key = self._dataset.key
        entity = self._dataset.entity
        rows = [event.row for event in events]
        replaced_rows = raw_rows(self._raw, key, {key_of(row, key) for row in rows})
        new_rows = self._new_rows(events, replaced_rows)
        values: list[ViewValues] = []
        problem = self._online.problem()
        if problem is None:
            former_rows = pa.concat_tables([replaced_rows, self._raw_rows(rows)])
            entities = former_rows[entity].unique().to_pylist()
            kept_rows = raw_rows(
                self._raw,
                [entity],
                [(value,) for value in entities],
                replaced=new_rows.select(key),
            )
            moment = max(now, datetime.now(UTC))
            try:
                values = self._online.compute(
                    pa.concat_tables([kept_rows, new_rows]),
                    pa.concat_tables([kept_rows, former_rows]),
                    moment,
                )
            except VALUE_ERRORS:
                problem = self._stored_problem(kept_rows, moment)
                if problem is None:
                    raise
        if problem:
            logger.warning("%s: events are not online yet: %s", self.name, problem)
        columns = [*self._dataset.schema.names, "superseded"]
        self._raw.merge(new_rows, key, columns)
        return values

    def _new_rows(
        self, events: Sequence["_Known"], replaced_rows: pa.Table
    ) -> pa.Table:
        """Return the rows that count: one after the other, as if each had come alone.

        Args:
            events: Rows in the order of their arrival.
            replaced_rows: Rows of the table that have a key of `events`.

        """
        key = self._dataset.key
        columns = self._dataset.schema.names
        stored = replaced_rows.to_pylist()
        texts = as_json(replaced_rows.select(columns))
        known = {
            key_of(row, key): _Known(row, text)
            for row, text in zip(stored, texts, strict=True)
        }
        landed = known.copy()
        rows_to_merge = {}
        for event in events:
            row_key = key_of(event.row, key)
            changed = self._with_event(known.get(row_key), event, landed.get(row_key))
            if changed is not None:
                known[row_key] = changed
                rows_to_merge[row_key] = changed.row
        return self._raw_rows(rows_to_merge.values())

    def _stored_problem(self, rows: pa.Table, moment: datetime) -> str | None:
        """Return the reason why views cannot be computed from rows of the table; None if they can."""
        try:
            self._online.compute(rows, rows, moment)
        except VALUE_ERRORS as exc:
            return f"{value_error(exc)}; run: gyre ingest {self.name} --full"
        return None

    def _with_event(
        self, old: "_Known | None", event: "_Known", landed: "_Known | None"
    ) -> "_Known | None":
        """Return what is known of a key once an event has come; None: nothing has changed.

        Args:
            old: The row that the table has, or that the events before have made of it.
            event: The row of the event.
            landed: The row that the table has.

        """
        if self._dataset.version or not self._has_source:
            if old is not None and self._is_older(event, old):
                return None
            # By its version alone; a source that repeats this version does not undo it.
            superseded = "" if self._dataset.version and self._has_source else None
            return _Known(event.row | {"superseded": superseded}, event.text)
        lag = self._dataset.lag // MICROSECOND
        at = microseconds(event.row["ingested_at"])
        before = _history_of(old)
        landed_before = before if landed is old else _history_of(landed)
        history = before.with_event(at, event.text, landed_before)
        if history == before:
            return None
        history = history.pruned(at, lag, may_come_late=True)
        text = history.counting_row(lag)
        row = event.row
        if old is not None and text == old.text:
            row = old.row
        elif text != event.text:
            row = from_json(text, self._dataset.schema) | {
                "ingested_at": event.row["ingested_at"]
            }
        arrival = row["ingested_at"]
        if old is not None:
            arrival = max(arrival, old.row["ingested_at"])
        own_columns = {
            "ingested_at": arrival,
            "superseded": write_history(history, text),
        }
        return _Known(row | own_columns, text)

    def _is_older(self, event: "_Known", old: "_Known") -> bool:
        """Whether an event is older than the row of the table: by its version, else by its arrival."""
        name = self._dataset.version
        if name is None:
            return microseconds(event.row["ingested_at"]) < _learnt_at(old)
        if old.row[name] is None:
            return False
        return event.row[name] is None or bool(event.row[name] < old.row[name])

    def _source_rows(self, rows: Iterable[Row]) -> pa.Table:
        return pa.Table.from_pylist(list(rows), schema=self._dataset.schema)

    def _raw_rows(self, rows: Iterable[Row]) -> pa.Table:
        return pa.Table.from_pylist(list(rows), schema=self._raw.schema)

    def _set_aside(self, texts: list[str], at: datetime, reasons: list[str]) -> None:
        logger.warning(
            "%s: rows go to quarantine: %d: %s", self.name, len(texts), reasons[0]
        )
        entries = quarantine_entries(texts, reasons, at)
        quarantine(self._quarantine, entries)


class _Known(NamedTuple):
    """A raw row, and its columns of the source as JSON."""

    row: Row
    text: str


def _learnt_at(known: _Known) -> int:
    """Return when a row was learnt, in microseconds since 1970.

    A row that was released from quarantine was learnt before it landed.
    """
    arrival = microseconds(known.row["ingested_at"])
    if not known.row["superseded"]:
        return arrival
    last_content = _history_of(known).contents[-1]
    return arrival if last_content.at == LONG_AGO else last_content.at


def _history_of(known: _Known | None) -> History:
    if known is None:
        return History()
    return read_history(known.row["superseded"], known.text)


def _reason(exc: Exception) -> str:
    message = " ".join(str(exc).split())
    return f"cannot be processed: {type(exc).__name__}: {message}"

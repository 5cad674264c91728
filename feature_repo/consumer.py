"""`gyre consume`: events from the broker into raw table, features and online store.

A micro-batch is what waits, at most 1,000 rows, begun no sooner than 200 ms after the one before.
Its rows are validated by the rules of single rows, merged by key, brought online and acknowledged
last: a consumer that dies on the way gets the same entries again, and they change nothing.

Of a key the newest arrival wins. An event arrives when the broker has it, a row of the source at
the ingest that first sees it.
"""

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter
from redis.exceptions import RedisError

from core.errors import DataError
from core.locks import one_writer
from core.settings import Settings
from feature_repo.broker import Entry, Stream, event_schema
from feature_repo.datasets import load_datasets
from feature_repo.definition import Dataset
from feature_repo.entities import UNFIT, EntityFeatures, Row, Values, key_of, raw_rows
from feature_repo.features import raw_table
from feature_repo.forgotten import forgotten
from feature_repo.quarantine import as_json, quarantine, quarantine_table
from feature_repo.validation import RowRules

MAX_ROWS, BATCH_SECONDS = 1_000, 0.2
CLOCKS = timedelta(seconds=60)
"""How far an event may be dated ahead of our clock."""
COMPACT_AFTER = 100
"""Micro-batches, each a file of the raw table, after which the small files are made one."""
logger = logging.getLogger(__name__)


def consume(settings: Settings) -> None:
    """Consume the events of every dataset until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stream = Stream(settings, socket.gethostname())
    consumers = _consumers(settings, stream)
    names = [consumer.name for consumer in consumers]
    logger.info("consuming events of %s", ", ".join(names))
    while not stop.is_set():
        began = time.monotonic()
        try:
            for consumer in consumers:
                stream.declare(consumer.schema)  # always: one without its data has no group
            busy = [consumer.step() for consumer in consumers]
            if any(busy):
                stop.wait(began + BATCH_SECONDS - time.monotonic())
            else:
                stream.wait(names)
        except RedisError as exc:
            logger.warning("Redis: %s", exc)
            stop.wait(1)


def _consumers(settings: Settings, stream: Stream) -> list["EventConsumer"]:
    datasets, problems = load_datasets()
    found = []
    for dataset in datasets:
        try:
            found.append(EventConsumer(settings, dataset, stream))
        except DataError as exc:  # the others' events are consumed
            problems.append(str(exc))
    for problem in problems:
        logger.error("takes no events: %s", problem)
    return found


class EventConsumer:
    """The events of one dataset."""

    def __init__(self, settings: Settings, dataset: Dataset, stream: Stream) -> None:
        self.name, self._settings, self._dataset = dataset.name, settings, dataset
        self._stream, self._raw = stream, raw_table(settings, dataset)
        self._aside = quarantine_table(settings, dataset)
        self._rules = RowRules(dataset)
        self.schema = event_schema(dataset, self._rules.never_null)
        row: Any = self.schema.row_model()
        self._rows = TypeAdapter(list[row])
        self._batches = 0

    @cached_property
    def _online(self) -> EntityFeatures:
        """Opened at the first batch: before the first ingest there may be no store."""
        return EntityFeatures(self._settings, self._dataset, self._raw)

    def step(self) -> bool:
        """Process and acknowledge what waits; False if nothing does, or it has to wait on.

        It waits for the first ingest, and for what another try may mend.
        """
        entries = self._stream.read(self.name)  # by which Redis knows that this consumer lives
        if not entries or not self._raw.exists:
            return False
        batch = self._batch(entries)
        try:
            self._process(batch)
            self._stream.acknowledge(self.name, [*batch])
            self._batches += 1
            if self._batches % COMPACT_AFTER == 0:
                self._raw.compact()
        except RedisError:
            raise
        except Exception as exc:  # noqa: BLE001  (a disk, a lock, an expression: not the events)
            logger.warning("%s: tried again: %s: %s", self.name, type(exc).__name__, exc)
            return False
        return True

    def _batch(self, entries: Sequence[Entry]) -> dict[Entry, list[Row]]:
        """Rows of the first entries, together at most 1,000; the others are read again."""
        batch, count = dict[Entry, list[Row]](), 0
        for entry in entries:
            rows = self._parsed(entry)
            count += len(rows)
            if batch and count > MAX_ROWS:
                break
            batch[entry] = rows
        return batch

    def _parsed(self, entry: Entry) -> list[Row]:
        try:
            found = self._rows.validate_json(entry.events)
        except ValueError as exc:  # not of serving, or of columns that the dataset had before
            self._quarantine_entry(entry, exc)
            return []
        arrival = {"ingested_at": entry.arrival, "superseded": None}
        return [row.model_dump() | arrival for row in found]

    def _process(self, batch: Mapping[Entry, list[Row]]) -> None:
        """Land the rows of a batch; if a value is at fault, of each entry alone."""
        try:
            with self._online.turn():  # which `gyre forget` has had before, or waits for
                known = forgotten(self._settings)
                rows = [row for rows in batch.values() for row in rows]
                self._land([row for row in rows if not known.has(row)])
        except UNFIT as exc:
            for entry, rows in batch.items():
                if len(batch) > 1:
                    self._process({entry: rows})
                else:
                    self._quarantine_entry(entry, exc)

    def _land(self, rows: Sequence[Row]) -> None:
        """Set aside what breaks a rule; merge the others and bring their entities online."""
        if not rows:
            return
        now = rows[-1]["ingested_at"]
        broken = self._rules.broken(self._table(rows), now + CLOCKS)
        aside = as_json(self._table([rows[n] for n in broken]))
        quarantine(self._aside, aside, [*broken.values()], now)
        if good := [row for n, row in enumerate(rows) if n not in broken]:
            with one_writer(self._settings, self._raw.name):  # what is superseded is what stands
                values = self._merge(good, now)
            self._online.write(values)

    def _merge(self, rows: Sequence[Row], now: datetime) -> Values:
        """Merge rows into the raw table; return the feature values of their entities.

        These come first: a value that no expression takes must not stand in the table.
        """
        key, entity = self._dataset.key, (self._dataset.entity,)
        columns = self._dataset.schema.names
        newest = {key_of(row, key): row for row in rows}
        entities = {key_of(row, entity) for row in rows}
        found = raw_rows(self._raw, {key: newest.keys(), entity: entities})
        before = [row for row in found if key_of(row, key) in newest]
        if moved := {key_of(row, entity) for row in before} - entities:
            found += raw_rows(self._raw, {entity: moved})
        known = {key_of(row, key): row for row in found}
        changed = []
        for of, row in newest.items():
            if old := known.get(of):
                is_same = all(row[name] == old[name] for name in columns)
                if is_same or row["ingested_at"] < old["ingested_at"]:
                    continue
                row["superseded"] = old["superseded"] or as_json(self._table([old]))[0]
            known[of] = row
            changed.append(row)
        values: Values = []
        if problem := self._online.problem():
            logger.warning("%s: events are in the table alone: %s", self.name, problem)
        else:
            values = self._online.values([*known.values()], [*before, *rows], now)
        if changed:
            table = pa.Table.from_pylist(changed, schema=self._raw.schema)
            self._raw.merge(table, key, columns, "ingested_at")
        return values

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        return pa.Table.from_pylist([*rows], schema=self._dataset.schema)

    def _quarantine_entry(self, entry: Entry, exc: Exception) -> None:
        logger.warning("%s: entry %s goes to quarantine: %s", self.name, entry.id, exc)
        text = json.dumps({"entry": entry.id, "events": entry.events.decode(errors="replace")})
        why = f"cannot be processed: {type(exc).__name__}: {' '.join(str(exc).split())}"
        quarantine(self._aside, [text], [why], entry.arrival)

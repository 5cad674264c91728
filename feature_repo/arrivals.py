"""Ingest's side of the events on file: they land by key beside what the source delivers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_repo.entities import EntityFeatures, raw_rows
from feature_repo.events import EventFiles, arrived_after, key_of, not_aside
from stack.log_files import first_began, is_closed
from stack.storage import Table, make_durable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from feature_repo.definition import Dataset
    from feature_repo.events import Event, Key, Row
    from stack.settings import Settings


class Arrivals:
    """Events received, and dated, up to `as_of`. Repeating any step changes nothing.

    A row that an event corrected stands in the source as before: it is remembered in the table
    `replaced`, and is no news as long as the event's row stands (its `ingested_at` says so).
    """

    def __init__(
        self, settings: Settings, dataset: Dataset, as_of: datetime, raw: Table, quarantine: Table
    ) -> None:
        self._settings, self._dataset, self._as_of = settings, dataset, as_of
        self._raw, self._quarantine = raw, quarantine
        self._replaced = Table(settings.data / "replaced" / dataset.name, raw.schema)
        self._files = EventFiles(settings, dataset)
        self._closed = {path for path in self._files.paths() if is_closed(path)}  # no more comes
        events = self._files.read(self._closed)
        self._due = [event for event in events if self._is_due(event)]
        self._waiting = {event.file for event in events if not self._is_due(event)}

    def without_replaced(self, pulled: pa.Table) -> pa.Table:
        """What the source delivers but for rows that events replaced and it has not changed."""
        old = pa.Table.from_pylist(self._in_force(), schema=self._raw.schema)
        if not old.num_rows or not self._has_form(pulled):
            return pulled
        columns = self._dataset.schema.names
        return pulled.join(old.select(columns), keys=columns, join_type="left anti")

    def beside(self, batch: pa.Table) -> pa.Table:
        """Add the pending events to what is new of the source; of a key in both the source's row
        stays, it arrives now. A batch that is not in the dataset's form is left to its suite.
        """
        if not self._due or not self._has_form(batch):
            return batch
        delivered = {self._key(row) for row in batch.select(self._dataset.key).to_pylist()}
        pending = self._pending()
        rows = [pending[of].row for of in pending if of not in delivered]
        self._remember(rows)
        return pa.concat_tables([batch, pa.Table.from_pylist(rows, schema=self._dataset.schema)])

    def finish(self) -> int:
        """After everything landed: what is on file goes online anew, what has landed goes.

        What goes is safe from a power cut in the tables before.

        A file with lines that are no events is set aside as `.malformed`; returns how many lines.
        """
        on_file = [event.row for event in EventFiles(self._settings, self._dataset).read()]
        if on_file:
            online = EntityFeatures(self._settings, self._dataset, self._raw, self._quarantine)
            online.bring_online(on_file, self._as_of)
            online.close()
        malformed = sum(map(self._files.malformed, self._files.paths()))
        # Pending still: what stood back for a row that went to quarantine. It lands next time.
        pending = self._pending() if self._due else {}
        kept = {event.file for event in self._due if self._key(event.row) in pending}
        done = self._closed - self._waiting - kept
        if done:
            for table in (self._raw, self._quarantine, self._replaced):
                make_durable(table.path, first_began(done))
        for path in done:
            with suppress(FileNotFoundError):  # another ingest was here
                if self._files.malformed(path):
                    path.rename(path.with_suffix(".malformed"))
                else:
                    path.unlink()
        return malformed

    def _key(self, row: Row) -> Key:
        return key_of(row, self._dataset.key)

    def _is_due(self, event: Event) -> bool:
        dated: datetime = event.row[self._dataset.event_time]
        return max(event.received, dated) <= self._as_of

    def _has_form(self, rows: pa.Table) -> bool:
        return bool(rows.schema.remove_metadata() == self._dataset.schema)

    def _standing(self, rows: Iterable[Row]) -> dict[Key, Row]:
        """Raw rows that have the keys of `rows`."""
        keys = {self._key(row) for row in rows}
        return {
            self._key(row): row for row in raw_rows(self._raw, {tuple(self._dataset.key): keys})
        }

    def _pending(self) -> dict[Key, Event]:
        """Due events that are newer than what stands and say something else, by key."""
        standing = self._standing(event.row for event in self._due)
        due = not_aside(self._due, self._quarantine)
        found = arrived_after(standing, due, self._dataset.key)
        return {
            of: e for of, e in found.items() if not e.row.items() <= standing.get(of, {}).items()
        }

    def _in_force(self) -> list[Row]:
        """Rows that were replaced by an event whose row stands."""
        old = self._replaced.read().to_pylist()
        standing = self._standing(old)
        return [r for r in old if standing[self._key(r)]["ingested_at"] == r["ingested_at"]]

    def _remember(self, rows: Sequence[Row]) -> None:
        """Before `rows` land. What was replaced by an event itself stays what is remembered."""
        replaced = self._standing(rows)
        replaced |= {self._key(r): r for r in self._in_force() if self._key(r) in replaced}
        if replaced:
            found = [row | {"ingested_at": self._as_of} for row in replaced.values()]
            table = pa.Table.from_pylist(found, schema=self._raw.schema)
            self._replaced.merge(table, self._dataset.key, self._raw.schema.names)

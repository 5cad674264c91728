"""Ingest's side of the events on file: they land by key beside what the source delivers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_repo.entities import EntityFeatures, raw_rows
from feature_repo.events import EventFiles, arrived_after, as_json, key_of
from stack.log_files import is_closed
from stack.storage import Table

if TYPE_CHECKING:
    from datetime import datetime

    from feature_repo.definition import Dataset
    from feature_repo.events import Event
    from stack.settings import Settings

TOGETHER = 1_000
"""Events whose entities are brought online in one go; serving waits for its turn meanwhile."""


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
        closed = {path for path in self._files.paths() if is_closed(path)}  # nothing more comes
        events = self._files.read(closed)
        waiting = {event.file for event in events if not self._is_due(event)}
        self._events = [event for event in events if self._is_due(event)]
        self._done = closed - waiting

    def _is_due(self, event: Event) -> bool:
        dated: datetime = event.row[self._dataset.event_time]
        return max(event.received, dated) <= self._as_of

    def without_replaced(self, pulled: pa.Table) -> pa.Table:
        """What the source delivers but for rows that events replaced and it has not changed."""
        if not self._replaced.exists or pulled.schema.remove_metadata() != self._dataset.schema:
            return pulled
        at = [*self._dataset.key, "ingested_at"]
        old = self._replaced.read().join(self._raw.read().select(at), at, join_type="left semi")
        columns = self._dataset.schema.names
        return pulled.join(old.select(columns), keys=columns, join_type="left anti")

    def beside(self, batch: pa.Table) -> pa.Table:
        """Add the pending events to what is new of the source; of a key in both the source's row
        stays, it arrives now. A batch that is not in the dataset's form is left to its suite.
        """
        if not self._events or batch.schema.remove_metadata() != self._dataset.schema:
            return batch
        key, columns = self._dataset.key, self._dataset.schema.names
        sent = {key_of(event.row, key) for event in self._events}
        standing = {key_of(row, key): row for row in raw_rows(self._raw, {tuple(key): sent})}
        news = arrived_after(standing, self._events, key)
        delivered = {key_of(row, key) for row in batch.select(key).to_pylist()}
        aside = set(self._quarantine.read()["row"].to_pylist())
        rows = []
        for of, row in news.items():
            content = {name: row[name] for name in columns}
            same = of in standing and all(standing[of][n] == row[n] for n in columns)
            if not same and of not in delivered and as_json([content])[0] not in aside:
                rows.append(content)
        sent = {key_of(row, key) for row in rows}
        self._remember([row for of, row in standing.items() if of in sent])
        return pa.concat_tables([batch, pa.Table.from_pylist(rows, schema=self._dataset.schema)])

    def _remember(self, rows: list[dict[str, object]]) -> None:
        """Before the events land. Of a row that an event replaced before, the first one stays."""
        if not rows:
            return
        key = self._dataset.key
        known = {key_of(row, key): row for row in self._replaced.read().to_pylist()}
        found = []
        for row in rows:
            old = known.get(key_of(row, key), row)
            first = old if old["ingested_at"] == row["ingested_at"] else row
            found.append(first | {"ingested_at": self._as_of})
        table = pa.Table.from_pylist(found, schema=self._raw.schema)
        self._replaced.merge(table, key, self._raw.schema.names)

    def finish(self) -> int:
        """After everything landed: what is on file goes online anew, what has landed goes.

        A file with lines that are no events is set aside as `.malformed`; returns how many lines.
        """
        on_file = [event.row for event in EventFiles(self._settings, self._dataset).read()]
        if on_file:
            online = EntityFeatures(self._settings, self._dataset, self._raw, self._quarantine)
            for start in range(0, len(on_file), TOGETHER):
                online.bring_online(on_file[start : start + TOGETHER], self._as_of)
            online.close()
        malformed = sum(map(self._files.malformed, self._files.paths()))
        for path in self._done:
            with suppress(FileNotFoundError):  # another ingest was here
                if self._files.malformed(path):
                    path.rename(path.with_suffix(".malformed"))
                else:
                    path.unlink()
        return malformed

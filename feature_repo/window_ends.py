"""Brings values online that change by themselves, because a window ends.

The event consumer keeps times and keys of what becomes due within the hour, never rows: of the rows
of the views, and of entities with raw rows newer than a view. When a key is due, its row is read
from the view, or computed from the raw rows where these are newer.
"""

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from core.settings import Settings
from core.storage import Table
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.entities import SOON, ViewValues, key_rows, newest_of_key
from feature_repo.features import open_raw
from feature_repo.online_values import OnlineValues
from feature_repo.online_writer import KeyValues, key_values
from feature_repo.view_difference import NewerRows
from feature_repo.views import period_of, view_tables

KEYS_AT_ONCE = 1_000
HANDOVER_KEYS = 100_000
"""What a step takes over from other consumers, more than their events bring in a second."""
RELOAD_AFTER = SOON / 2
MICROSECOND = timedelta(microseconds=1)
LEASE_SECONDS = 10
"""How long a consumer that stopped keeps others from its work."""


class DueKey(NamedTuple):
    """A key of a view, and when its value changes by itself."""

    time: datetime
    view: str
    key: KeyValues


class WindowEnds:
    """The values of one dataset that change by themselves.

    Args:
        settings: Of the installation.
        dataset: Whose views are meant.
        raw: The dataset's raw table.
        online: The dataset's online values.
        owner: Name of this consumer. One consumer of all does the work.

    """

    def __init__(
        self, settings: Settings, dataset: Dataset, raw: Table, online: OnlineValues, owner: str
    ) -> None:
        self._dataset = dataset
        self._raw = raw
        self._online = online
        self._owner = owner
        self._has_lease = False
        key = f"gyre:window-ends:{online.store.project}:{dataset.name}"
        self._lease_key = key
        self._handover_key = f"{key}:handover"
        self._views = {view.name: view for view in view_tables(settings, dataset)}
        self._versions: dict[str, int] = {}
        self._newer_rows: dict[str, NewerRows] = {}
        self._queue: list[DueKey] = []
        self._queued: set[DueKey] = set()
        self._done_until: datetime | None = None
        self._loaded_until: datetime | None = None

    def add(self, values: Iterable[ViewValues]) -> None:
        """Queue what follows soon on values that were just computed.

        A consumer without the lease hands it over to the one that has it.
        """
        for view_values in values:
            if view_values.upcoming is not None:
                due_keys = self._due_keys(view_values.view.name, view_values.upcoming)
                if self._has_lease:
                    self._queue_keys(due_keys)
                else:
                    self._hand_over(due_keys)

    def next_time(self) -> datetime | None:
        """Return when the next value is due; None: nothing is queued."""
        return self._queue[0].time if self._queue else None

    def step(self, now: datetime) -> bool:
        """Bring at most 1,000 keys online that are due; return whether there were any."""
        self._has_lease = self._is_owner()
        if not self._has_lease or self._online.problem():
            self._loaded_until = None
            self._done_until = None
            self._clear_queue()
            return False
        self._load(now)
        self._take_over()
        due_keys: list[DueKey] = []
        while self._queue and self._queue[0].time <= now and len(due_keys) < KEYS_AT_ONCE:
            due_key = heappop(self._queue)
            self._queued.discard(due_key)
            due_keys.append(due_key)
        if due_keys:
            loaded_until = self._loaded_until
            self._loaded_until = None  # if writing fails, the keys are loaded again
            with self._online.lock():
                self._bring_online(due_keys, now)
            self._loaded_until = loaded_until
        self._done_until = now
        if self._queue and self._queue[0].time <= now:
            self._done_until = self._queue[0].time - MICROSECOND
        return bool(due_keys)

    def _is_owner(self) -> bool:
        """Whether this consumer has the lease on the work, which it takes or extends."""
        redis = self._online.redis
        if redis.set(self._lease_key, self._owner, nx=True, ex=LEASE_SECONDS):
            return True
        if redis.get(self._lease_key) != self._owner.encode():
            return False
        redis.expire(self._lease_key, LEASE_SECONDS)
        return True

    def _hand_over(self, due_keys: Iterable[DueKey]) -> None:
        texts = [
            json.dumps([due_key.time.isoformat(), due_key.view, due_key.key])
            for due_key in due_keys
        ]
        if texts:
            self._online.redis.rpush(self._handover_key, *texts)

    def _take_over(self) -> None:
        """Queue what other consumers handed over."""
        texts = self._online.redis.lpop(self._handover_key, HANDOVER_KEYS) or []
        due_keys = []
        for text in texts:
            time, view, key = json.loads(text)
            due_keys.append(DueKey(datetime.fromisoformat(time), view, tuple(key)))
        self._queue_keys(due_keys)

    def _load(self, now: datetime) -> None:
        """Queue what is due within the hour, where the views changed or half of it has passed."""
        versions = {name: view.table.version for name, view in self._views.items()}
        is_loaded = self._loaded_until is not None and now + RELOAD_AFTER < self._loaded_until
        if is_loaded and versions == self._versions:
            return
        self._clear_queue()
        for name in self._views:
            since = self._done_until or self._online_until(name)
            if since is not None:
                changes = self._changes_between(name, since, now + SOON)
                self._queue_keys(self._due_keys(name, changes))
        self._versions = versions
        self._loaded_until = now + SOON

    def _online_until(self, view: str) -> datetime | None:
        state = self._online.state(view)
        return None if state is None else state.time

    def _changes_between(self, name: str, since: datetime, until: datetime) -> pa.Table:
        """Return join keys and event times of a view's rows in (since, until]."""
        table = self._views[name].table
        columns = [*self._online.views[name].join_keys, "event_timestamp"]
        newer_entities = self._newer_entities(name)
        with connected(threads=1) as connection:
            files = table.files(within=f"period >= {period_of(since)}")
            rows = connection.read_parquet(files or table.files())
            rows = _within(rows, since, until).select(columns)
            if newer_entities:
                entity = self._dataset.entity
                values = [(value,) for value in newer_entities]
                newer = ibis.memtable(key_rows(self._raw.schema, [entity], values))
                raw_rows = open_raw(self._raw, connection=connection).semi_join(newer, entity)
                computed = _within(self._dataset.views[name](raw_rows), since, until)
                computed = computed.select(columns).cast(rows.schema())
                rows = rows.anti_join(newer, entity).union(computed)
            changes: pa.Table = connection.to_pyarrow(rows)
        return changes

    def _newer_entities(self, name: str) -> set[Any]:
        """Return the entities with raw rows newer than a view; none where the view has no rows."""
        state = self._views[name].state()
        if state is None:
            return set()
        newer_rows = self._newer_rows.get(name)
        if newer_rows is None or newer_rows.base != state.raw:
            newer_rows = NewerRows(self._raw, state.raw, self._dataset.entity)
            self._newer_rows[name] = newer_rows
        return newer_rows.entities()

    def _clear_queue(self) -> None:
        self._queue = []
        self._queued = set()

    def _due_keys(self, view: str, rows: pa.Table) -> list[DueKey]:
        keys = key_values(self._online.views[view], rows)
        times = rows["event_timestamp"].to_pylist()
        return [DueKey(time, view, key) for key, time in zip(keys, times, strict=True)]

    def _queue_keys(self, due_keys: Iterable[DueKey]) -> None:
        for due_key in due_keys:
            if due_key not in self._queued:
                self._queued.add(due_key)
                heappush(self._queue, due_key)

    def _bring_online(self, due_keys: list[DueKey], now: datetime) -> None:
        """Write the values of keys; the feature lock is held."""
        earliest = due_keys[0].time
        entities: set[Any] = set()
        values = []
        for name in self._views:
            keys = {due_key.key for due_key in due_keys if due_key.view == name}
            newer_entities = self._newer_entities(name)
            position = sorted(self._online.views[name].join_keys).index(self._dataset.entity)
            newer_keys = {key for key in keys if key[position] in newer_entities}
            entities.update(key[position] for key in newer_keys)
            stored_keys = keys - newer_keys
            if stored_keys:
                values.append(self._stored_values(name, stored_keys, earliest, now))
        if entities:
            computed_values = self._online.compute_entities(entities, now)
            self.add(computed_values)
            values += computed_values
        self._online.write(values, by_consumer=True)

    def _stored_values(
        self, name: str, keys: Iterable[KeyValues], earliest: datetime, now: datetime
    ) -> ViewValues:
        """Read the newest rows of keys that have a row since `earliest` from a view."""
        feast_view = self._online.views[name]
        names = sorted(feast_view.join_keys)
        until = max(now, self._online_until(name) or now)
        with connected(threads=1) as connection:
            files = self._views[name].table.files(within=f"period >= {period_of(earliest)}")
            rows = connection.read_parquet(files)
            due = rows.filter(rows.event_timestamp.between(earliest, until))
            key_table = ibis.memtable(key_rows(rows.schema().to_pyarrow(), names, keys))
            table = connection.to_pyarrow(due.semi_join(key_table, names))
        return ViewValues(feast_view, newest_of_key(table, names))


def _within(rows: ir.Table, since: datetime, until: datetime) -> ir.Table:
    times = rows.event_timestamp
    return rows.filter((times > ibis.literal(since)) & (times <= ibis.literal(until)))

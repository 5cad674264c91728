"""Brings values online that change by themselves, because a window ends.

Redis has a sorted set for each dataset: the keys of its views, by the time at which the value of a
key changes next. Rows of the views enter it within the hour before, values of events at once. When
a key is due, its row is read from the view, or computed where the consumer wrote it on newer rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from core.timestamps import BEGINNING, microseconds
from feature_engine.engines.duckdb_engine import row_connection
from feature_engine.engines.periods import period_of
from feature_engine.offline.views import ViewTable
from feature_engine.online.entity_values import key_rows, values_at
from feature_engine.online.redis_rows import key_values
from feature_engine.online.state import ends_key, loaded_ends_key
from feature_engine.online.values import OnlineValues, written_state
from feature_engine.online.writer import ViewValues
from feature_repo.published.redis_names import KeyValues

KEYS_AT_ONCE = 1_000
SOON = timedelta(hours=1)
"""Rows of views that come due within this time enter the sorted set."""
LOAD_AGAIN = SOON / 2
Members = list[tuple[bytes, float]]
"""Members of the sorted set, with their scores."""


class WindowEnds:
    """The keys of one dataset whose values change by themselves.

    Several consumers may do the work: each step holds the feature lock.

    Args:
        online: The dataset's online values.

    """

    def __init__(self, online: OnlineValues) -> None:
        self._online = online
        project = online.store.project
        self._key = ends_key(project, online.dataset.name)
        self._loaded_key = loaded_ends_key(project, online.dataset.name)

    def add(self, values: Iterable[ViewValues]) -> None:
        """Note when values that were just written change next."""
        scores = self._scores(values)
        if scores:
            self._online.redis.zadd(self._key, scores)

    def next_time(self) -> datetime | None:
        """Return when the next value is due; None: none is known."""
        members = self._online.redis.zrange(self._key, 0, 0, withscores=True)
        return _time(members[0][1]) if members else None

    def step(self, now: datetime) -> bool:
        """Bring at most 1,000 keys online that are due; return whether there were any."""
        if self._online.problem():
            return False
        for view in self._online.tables:
            self._load(view, now)
        next_time = self.next_time()
        if next_time is None or next_time > now:
            return False
        with self._online.lock():
            members = self._due_members(now)
            if members:  # else another consumer has written them
                scores = self._scores(self._bring_online(members, now))
                with self._online.redis.pipeline() as pipe:
                    pipe.zrem(self._key, *[member for member, _ in members])
                    if scores:
                        pipe.zadd(self._key, scores)
                    pipe.execute()
        return bool(members)

    def _load(self, view: ViewTable, now: datetime) -> None:
        """Add the keys that are due within the hour: after a refresh, and every half an hour."""
        state = self._online.state(view.name)
        if state is None or state.time is None:
            return
        since = state.time
        note = self._online.redis.hget(self._loaded_key, view.name)
        if note:
            version, loaded_until = json.loads(note)
            if version == state.version:
                since = datetime.fromisoformat(loaded_until)
        if since > now + LOAD_AGAIN:
            return
        until = now + SOON
        names = sorted(self._online.views[view.name].join_keys)
        with row_connection() as connection:
            rows = _rows_between(connection, view, since, until)
            later = rows.filter(rows.event_timestamp > since)
            first = later.group_by(names).agg(
                event_timestamp=later.event_timestamp.min()
            )
            for batch in connection.to_pyarrow_batches(first, chunk_size=10_000):
                scores = self._scores_of(view.name, pa.Table.from_batches([batch]))
                self._online.redis.zadd(self._key, scores, lt=True)
        note = json.dumps([state.version, until.isoformat()])
        self._online.redis.hset(self._loaded_key, view.name, note)

    def _due_members(self, now: datetime) -> Members:
        """Return members of the sorted set that are due, with their scores, in the order of these."""
        members: Members = self._online.redis.zrange(
            self._key,
            "-inf",
            microseconds(now),
            byscore=True,
            offset=0,
            num=KEYS_AT_ONCE,
            withscores=True,
        )
        return members

    def _bring_online(self, members: Members, now: datetime) -> list[ViewValues]:
        """Write the values of keys that are due, and return them; the feature lock is held."""
        earliest = _time(members[0][1])
        due_keys = _keys_by_view(members)
        values = []
        entities: set[Any] = set()
        for view in self._online.tables:
            keys = due_keys[view.name]
            raw_version = written_state(view).raw
            newer_keys = self._online.writer.keys_ahead(
                view.name, sorted(keys), raw_version + 1
            )
            names = sorted(self._online.views[view.name].join_keys)
            position = names.index(view.dataset.entity)
            entities.update(key[position] for key in newer_keys)
            stored_keys = keys - newer_keys
            if stored_keys:
                stored_values = self._stored_values(view, stored_keys, earliest, now)
                self._online.writer.write([stored_values], raw_version)
                values.append(stored_values)
        computed_values = self._online.compute_entities(entities, now)
        self._online.writer.write(computed_values, self._online.raw.version)
        return values + computed_values

    def _stored_values(
        self,
        view: ViewTable,
        keys: Iterable[KeyValues],
        earliest: datetime,
        now: datetime,
    ) -> ViewValues:
        """Read the newest rows of keys that have a row since `earliest` from a view."""
        feast_view = self._online.views[view.name]
        names = sorted(feast_view.join_keys)
        with row_connection() as connection:
            rows = _rows_between(connection, view, earliest, now + SOON)
            key_table = ibis.memtable(key_rows(rows.schema().to_pyarrow(), names, keys))
            table = connection.to_pyarrow(rows.semi_join(key_table, names))
        return values_at(feast_view, table, self._online.moment(view.name, now))

    def _scores(self, values: Iterable[ViewValues]) -> dict[str, int]:
        scores: dict[str, int] = {}
        for view_values in values:
            scores |= self._scores_of(view_values.view.name, view_values.next_rows)
        return scores

    def _scores_of(self, view: str, rows: pa.Table) -> dict[str, int]:
        """Return members of the sorted set, and their times in microseconds."""
        keys = key_values(self._online.views[view], rows)
        times = rows["event_timestamp"].to_pylist()
        return {
            json.dumps([view, *key]): microseconds(time)
            for key, time in zip(keys, times, strict=True)
        }


def _keys_by_view(members: Members) -> dict[str, set[KeyValues]]:
    """Return the keys that members of the sorted set name, by view."""
    keys: dict[str, set[KeyValues]] = defaultdict(set)
    for member, _ in members:
        view, *key = json.loads(member)
        keys[view].add(tuple(key))
    return keys


def _rows_between(
    connection: Any, view: ViewTable, since: datetime, until: datetime
) -> ir.Table:
    """Open the rows of a view between two moments, both included."""
    files = (
        view.table.files(within=f"period >= {period_of(since)}") or view.table.files()
    )
    rows = connection.read_parquet(files)
    return rows.filter(rows.event_timestamp.between(since, until))


def _time(score: float) -> datetime:
    return BEGINNING + timedelta(microseconds=int(score))

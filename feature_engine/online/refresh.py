"""Brings views online: Redis gets the values that differ from its own, and loses vanished entities.

Online is the newest row of each entity at or before now. A refresh compares the version of the
view's table that Redis holds with the newest version, and adds the keys that the event consumer
wrote since. It writes in batches under the dataset's feature lock; between two of them the consumer
goes on. Spark's executors need no lock. Values that the consumer writes meanwhile are newer, and
stay, see `writer`.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
from redis.exceptions import RedisError

from core.errors import FeaturesUnavailableError
from core.timestamps import BEGINNING
from feature_engine.engines.engine import engine_connection
from feature_engine.offline.views import ViewTable
from feature_engine.online import redis_rows, state, writer
from feature_engine.online.difference import ViewDifference
from feature_engine.online.redis_rows import format_config, key_values
from feature_engine.online.state import OnlineState, ahead_key, replace_state
from feature_engine.online.values import OnlineValues, written_state
from feature_engine.online.writer import BATCH_KEYS, ViewValues, write_on_executor
from feature_repo.published import redis_names
from feature_repo.published.config import online_redis
from feature_repo.published.redis_names import KeyValues, state_key
from feature_repo.published.store import WRITE_DEADLINE

STORED_KEYS = 100_000
"""Keys of Redis that are compared with a view's at a time."""
TRIES = 5
PAUSE_SECONDS = 2.0
"""Pause between two tries: a Redis that was restarted reads its file first."""
Clock = Callable[[], datetime]


def refresh_online(online: OnlineValues, clock: Clock, *, full: bool = False) -> None:
    """Bring all views of a dataset online.

    Args:
        online: The dataset's online values. Its views are up to date: see `write_views`.
        clock: Returns the moment (aware UTC) up to which rows count.
        full: Write every row, also rows that Redis should hold: it may have lost some.

    Raises:
        DataError: Another process holds the feature lock, or the rows of a view are not computed.
        FeaturesUnavailableError: Redis does not answer, or is restarted again and again.

    """
    for view in online.tables:
        ViewRefresh(view, online, clock, full=full).run()


def record_intervals(online: OnlineValues) -> None:
    """Record in Feast's registry up to when the views of a dataset are online.

    `feast materialize-incremental` goes on from the last interval.
    """
    store = online.store
    with _redis_errors():
        for name in online.dataset.views:
            state = online.state(name)
            view = store.get_feature_view(name)
            start = view.most_recent_end_time or BEGINNING
            if state and state.time and start < state.time:
                store.registry.apply_materialization(
                    view, store.project, start, state.time
                )


def notice_materialization_by_hand(online: OnlineValues) -> None:
    """Let the next refresh write all values of views whose last interval is not from a refresh."""
    store = online.store
    with _redis_errors():
        for name in online.dataset.views:
            state = online.state(name)
            intervals = store.get_feature_view(name).materialization_intervals
            if state and intervals and intervals[-1][1] != state.time:
                key = state_key(store.project, name)
                replace_state(online.redis, key, state, OnlineState(time=state.time))


class ViewRefresh:
    """The refresh of one view's values online."""

    def __init__(
        self, view: ViewTable, online: OnlineValues, clock: Clock, *, full: bool
    ) -> None:
        self._view = view
        self._online = online
        self._clock = clock
        self._full = full
        self._feast_view = online.views[view.name]
        self._keys = sorted(self._feast_view.join_keys)
        self._state_key = state_key(online.store.project, view.name)
        self._ahead_key = ahead_key(online.store.project, view.name)
        self._taken_key = f"{self._ahead_key}:taken"

    def run(self) -> None:
        """Write values that differ, anew where Redis was restarted: it may have lost new values.

        Raises:
            FeaturesUnavailableError: See `refresh_online`.

        """
        reason = "it was restarted"
        for _ in range(TRIES):
            try:
                if self._run_once():
                    return
            except (RedisError, FeaturesUnavailableError) as exc:
                reason = str(exc)
            time.sleep(PAUSE_SECONDS)
        raise FeaturesUnavailableError(
            f"{self._view.name}: Redis took its values in none of {TRIES} tries: {reason}"
        )

    def _run_once(self) -> bool:
        """Write values that differ; return False where Redis was restarted, or its state changed."""
        redis = self._online.redis
        server = redis.info("server")["run_id"]
        version = self._view.table.version
        view_state = written_state(self._view, version)
        with self._online.lock():
            old = self._online.state(self._view.name)
            taken_keys = self._take_keys_ahead(view_state.raw)
            moment = self._clock()
        if old is not None and old.time is not None:
            moment = max(moment, old.time)
        with engine_connection(self._online.settings) as connection:
            difference = ViewDifference(
                connection, self._view, self._keys, version, moment
            )
            changed_keys = self._changed_keys(difference, old, taken_keys)
            begun = _begun(old, version, is_whole=changed_keys is None)
            if not replace_state(redis, self._state_key, old, begun):
                return False
            self._write_newest(connection, difference.newest(changed_keys))
            for keys in self._stored_keys(difference, changed_keys):
                for rows in _batches(connection, difference.vanished(keys)):
                    self._write(difference.no_rows, key_values(self._feast_view, rows))
        if redis.info("server")["run_id"] != server:
            return False
        ended = OnlineState(version=version, time=moment)
        is_ended = replace_state(redis, self._state_key, begun, ended)
        if is_ended:
            redis.delete(self._taken_key)
        return is_ended

    def _take_keys_ahead(self, raw_version: int) -> list[KeyValues]:
        """Take the keys of the consumer that are not ahead of a version of the raw table.

        Returns:
            These keys, and keys that a killed refresh took.

        """
        redis = self._online.redis
        members = redis.zrange(self._ahead_key, "-inf", raw_version, byscore=True)
        if members:
            with redis.pipeline() as pipe:
                pipe.sadd(self._taken_key, *members)
                pipe.zrem(self._ahead_key, *members)
                pipe.execute()
        return [tuple(json.loads(member)) for member in redis.smembers(self._taken_key)]

    def _changed_keys(
        self,
        difference: ViewDifference,
        old: OnlineState | None,
        taken_keys: Sequence[KeyValues],
    ) -> ir.Table | None:
        """Return the keys whose values online may be outdated; None: any may be."""
        if self._full or old is None or old.version is None or old.time is None:
            return None
        old_versions = {old.version}
        if old.next is not None:
            old_versions.add(old.next)
        return difference.changed_keys(old_versions, old.time, taken_keys)

    def _write_newest(self, connection: Any, rows: ir.Table) -> None:
        """Write rows: the executors of Spark do it where the values are in Redis."""
        if connection.name != "pyspark" or not self._online.is_redis:
            for batch in _batches(connection, rows):
                self._write(batch)
            return
        write = partial(
            write_on_executor,
            format_config(self._online.store.config),
            self._feast_view,
            online_redis(self._online.settings),
            WRITE_DEADLINE,
        )
        modules = (redis_names, redis_rows, state, writer)
        problems = connection.use_rows(rows, write, modules)
        if problems:
            raise FeaturesUnavailableError(
                f"Redis, from a worker of Spark: {problems[0]}"
            )

    def _stored_keys(
        self, difference: ViewDifference, changed_keys: ir.Table | None
    ) -> Iterator[ir.Table]:
        """Yield the changed keys (None: all keys of Redis), of which some may have no row."""
        if changed_keys is not None:
            yield changed_keys
            return
        stored_keys = self._online.stored_keys(self._view.name)
        for keys in iter(lambda: list(islice(stored_keys, STORED_KEYS)), []):
            yield difference.key_table(keys)

    def _write(self, rows: pa.Table, deleted: Sequence[KeyValues] = ()) -> None:
        """Write rows and delete keys; the consumer goes on between two batches."""
        values = ViewValues(self._feast_view, rows, deleted)
        with self._online.lock():
            self._online.writer.write([values])


@contextmanager
def _redis_errors() -> Iterator[None]:
    """Raise FeaturesUnavailableError where Redis does not answer."""
    try:
        yield
    except RedisError as exc:
        raise FeaturesUnavailableError(f"Redis: {exc}") from exc


def _batches(connection: Any, rows: ir.Table) -> Iterator[pa.Table]:
    """Compute rows, and yield at most 1,000 at a time."""
    for batch in connection.to_pyarrow_batches(rows, chunk_size=BATCH_KEYS):
        table = pa.Table.from_batches([batch])
        for start in range(0, table.num_rows, BATCH_KEYS):
            yield table.slice(start, BATCH_KEYS)


def _begun(old: OnlineState | None, version: int, *, is_whole: bool) -> OnlineState:
    """Return the state of a refresh under way.

    If it is killed after another refresh that was killed, the next refresh writes all values.
    """
    if old is None:
        return OnlineState(next=version)
    is_after_kill = old.next is not None and old.next != version
    known_version = None if is_whole or is_after_kill else old.version
    return OnlineState(version=known_version, time=old.time, next=version)

"""Brings views online: Redis gets what differs from what it holds, and loses what vanished.

Online is the newest row of each entity at or before now. A refresh compares the version of the
view's table that Redis holds with the newest version, and adds the keys that the event consumer
wrote since. It writes in batches under the dataset's feature lock; between two of them the consumer
goes on. An entity with raw rows newer than the view is left to the consumer where the consumer has
written it, and is computed from its raw rows where not. So no value ever goes back.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from redis.exceptions import RedisError

from core.errors import DataError, FeaturesUnavailableError
from core.settings import Settings
from core.storage import Table
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.entities import SOON, ViewValues, key_rows, newest_of_key
from feature_repo.online_state import (
    OnlineState,
    consumer_set_key,
    key_text,
    replace_state,
    state_key,
)
from feature_repo.online_values import OnlineValues
from feature_repo.online_writer import KeyValues, key_values
from feature_repo.view_difference import BATCH_ROWS, NewerRows, ViewDifference
from feature_repo.views import ViewTable

REDIS_SECONDS = 10.0
"""What Redis may take for a batch."""
TRIES = 5
PAUSE_SECONDS = 2.0
"""Between two tries: a Redis that was restarted reads its file first."""
Clock = Callable[[], datetime]


def refresh_online(
    settings: Settings, dataset: Dataset, raw: Table, as_of: datetime, clock: Clock | None = None
) -> None:
    """Bring all views of a dataset online.

    Args:
        settings: Of the installation.
        dataset: Its views are up to date: see `write_views`.
        raw: The dataset's raw table.
        as_of: Aware UTC. Rows up to this time, or up to now, go online.
        clock: Says what time it is while values are written, so that none goes back behind what
            the consumer writes. By default the time of this machine, or `as_of` where it is later.

    Raises:
        DataError: The feature lock is held by somebody else.
        FeaturesUnavailableError: Redis does not answer, or is restarted again and again.

    """
    online = OnlineValues(settings, dataset, raw, REDIS_SECONDS)
    with closing(online):
        for name in dataset.views:
            view = ViewTable(settings, dataset, name)
            refresh = ViewRefresh(
                dataset=dataset,
                raw=raw,
                view=view,
                online=online,
                clock=clock or (lambda: max(as_of, datetime.now(UTC))),
            )
            _run_until_ended(refresh, name)


def _run_until_ended(refresh: "ViewRefresh", name: str) -> None:
    """Run a refresh anew where Redis was restarted meanwhile: it may have lost what was written."""
    reason = "it was restarted"
    for _ in range(TRIES):
        try:
            if refresh.run():
                return
        except (RedisError, FeaturesUnavailableError) as exc:
            reason = str(exc)
        time.sleep(PAUSE_SECONDS)
    raise FeaturesUnavailableError(
        f"{name}: Redis took its values in none of {TRIES} tries: {reason}"
    )


class ViewRefresh:
    """The refresh of one view's values online."""

    def __init__(
        self,
        dataset: Dataset,
        raw: Table,
        view: ViewTable,
        online: OnlineValues,
        clock: Clock,
    ) -> None:
        self._dataset = dataset
        self._raw = raw
        self._view = view
        self._online = online
        self._clock = clock
        self._feast_view = online.views[view.name]
        self._state_key = state_key(online.store.project, view.name)
        self._consumer_set = consumer_set_key(online.store.project, view.name)

    def run(self) -> bool:
        """Write what differs; return False where Redis was restarted, or its state changed."""
        redis = self._online.redis
        server = redis.info("server")["run_id"]
        old = self._online.state(self._view.name)
        version = self._view.table.version
        # Values that are online never go back to an earlier time.
        moment = self._clock()
        if old is not None and old.time is not None:
            moment = max(moment, old.time)
        consumer_keys = {tuple(json.loads(key)) for key in redis.smembers(self._consumer_set)}
        with connected() as connection:
            difference = ViewDifference(
                connection=connection,
                raw=self._raw,
                entity=self._dataset.entity,
                view=self._view,
                keys=sorted(self._feast_view.join_keys),
                version=version,
                moment=moment,
            )
            changed_keys = self._changed_keys(difference, old, consumer_keys)
            begun = _begun(old, version, is_whole=changed_keys is None)
            with self._online.lock():
                if not replace_state(redis, self._state_key, old, begun):
                    return False
                if changed_keys is None:
                    redis.delete(self._consumer_set)
            self._write(difference, changed_keys, moment, consumer_keys)
        if redis.info("server")["run_id"] != server:
            return False
        ended = OnlineState(version=version, time=moment)
        return replace_state(redis, self._state_key, begun, ended)

    def _changed_keys(
        self, difference: ViewDifference, old: OnlineState | None, consumer_keys: set[KeyValues]
    ) -> ir.Table | None:
        """Return the keys whose values may differ from those online; None: any may."""
        if old is None or old.version is None or old.time is None:
            return None
        old_versions = {old.version}
        if old.next is not None:
            old_versions.add(old.next)
        return difference.changed_keys(old_versions, old.time, list(consumer_keys))

    def _write(
        self,
        difference: ViewDifference,
        changed_keys: ir.Table | None,
        moment: datetime,
        consumer_keys: set[KeyValues],
    ) -> None:
        """Write the newest rows of changed keys (None: of all), and delete those without a row."""
        stored_keys = changed_keys
        if stored_keys is None:
            stored_keys = difference.key_table(self._online.stored_keys(self._view.name))
        view_state = self._view.state(difference.version)
        assert view_state is not None  # noqa: S101  (its rows were written before)
        writer = BatchWriter(
            online=self._online,
            view=self._feast_view,
            newer_rows=NewerRows(self._raw, view_state.raw, self._dataset.entity),
            upcoming=difference.upcoming(changed_keys),
            clock=lambda: max(self._clock(), moment),
            last_moment=moment + SOON,
            consumer_set=self._consumer_set,
            consumer_keys=consumer_keys,
        )
        for rows in difference.newest(changed_keys):
            writer.write(rows)
        vanished = difference.vanished(stored_keys)
        for start in range(0, len(vanished), BATCH_ROWS):
            writer.delete(vanished[start : start + BATCH_ROWS])


def _begun(old: OnlineState | None, version: int, *, is_whole: bool) -> OnlineState:
    """Return the state of a refresh under way.

    Where it is killed after another one that was killed, the next refresh writes all.
    """
    if old is None:
        return OnlineState(next=version)
    is_after_kill = old.next is not None and old.next != version
    known_version = None if is_whole or is_after_kill else old.version
    return OnlineState(version=known_version, time=old.time, next=version)


class BatchWriter:
    """Writes and deletes a view's values, each call under the dataset's feature lock.

    Args:
        online: The dataset's online values.
        view: Feast's view.
        newer_rows: Entities with raw rows newer than the view.
        upcoming: Rows of the view that become due while values are written.
        clock: Says what time it is.
        last_moment: Up to when `upcoming` is complete.
        consumer_set: Redis key of the keys that the consumer wrote.
        consumer_keys: Its members at the start; those that are written here are taken out.

    """

    def __init__(
        self,
        online: OnlineValues,
        view: FeatureView,
        newer_rows: NewerRows,
        upcoming: pa.Table,
        clock: Clock,
        last_moment: datetime,
        consumer_set: str,
        consumer_keys: set[KeyValues],
    ) -> None:
        self._online = online
        self._view = view
        self._keys = sorted(view.join_keys)
        self._newer_rows = newer_rows
        self._upcoming = upcoming
        self._clock = clock
        self._last_moment = last_moment
        self._consumer_set = consumer_set
        self._consumer_keys = consumer_keys

    def write(self, rows: pa.Table) -> None:
        """Write the newest rows of some keys.

        Raises:
            DataError: The refresh takes more than an hour.

        """
        with self._online.lock():
            moment = self._now()
            newer_entities = self._newer_rows.entities()
            if newer_entities:
                column = self._newer_rows.entity
                values = pa.array(newer_entities, rows.schema.field(column).type)
                has_newer = pc.is_in(rows[column], values)
                self._write_newer(key_values(self._view, rows.filter(has_newer)), moment)
                rows = rows.filter(pc.invert(has_newer))
            due_rows = self._due_rows(rows.select(self._keys), moment)
            both = pa.concat_tables([rows, due_rows.select(rows.column_names)])
            newest = newest_of_key(both, self._keys) if due_rows.num_rows else rows
            self._write_values(ViewValues(self._view, newest))

    def delete(self, keys: Sequence[KeyValues]) -> None:
        """Delete the values of keys without a row, unless one has become due meanwhile."""
        with self._online.lock():
            moment = self._now()
            newer_entities = self._newer_rows.entities()
            position = self._keys.index(self._newer_rows.entity)
            newer_keys = [key for key in keys if key[position] in newer_entities]
            self._write_newer(newer_keys, moment)
            old_keys = [key for key in keys if key[position] not in newer_entities]
            key_table = key_rows(self._upcoming.schema, self._keys, old_keys)
            rows = newest_of_key(self._due_rows(key_table, moment), self._keys)
            due_keys = set(key_values(self._view, rows))
            deleted = [key for key in old_keys if key not in due_keys]
            self._write_values(ViewValues(self._view, rows, deleted))

    def _now(self) -> datetime:
        moment = self._clock()
        if moment > self._last_moment:
            raise DataError(f"{self._view.name}: its refresh took more than an hour: again")
        return moment

    def _due_rows(self, keys: pa.Table, moment: datetime) -> pa.Table:
        """Return the rows of keys that became due since the refresh began."""
        due = self._upcoming.filter(pc.field("event_timestamp") <= moment)
        return due.join(keys, self._keys, join_type="left semi") if due.num_rows else due

    def _write_newer(self, keys: Sequence[KeyValues], moment: datetime) -> None:
        """Compute entities with newer raw rows, unless the consumer has written them."""
        if not keys:
            return
        texts = [key_text(key) for key in keys]
        are_written = self._online.redis.smismember(self._consumer_set, texts)
        position = self._keys.index(self._newer_rows.entity)
        entities = {
            key[position]
            for key, is_written in zip(keys, are_written, strict=True)
            if not is_written
        }
        if entities:
            self._online.write(self._online.compute_entities(entities, moment))

    def _write_values(self, values: ViewValues) -> None:
        self._online.write([values])
        keys = {*key_values(self._view, values.rows), *values.deleted}
        members = [key_text(key) for key in keys & self._consumer_keys]
        if members:
            self._online.redis.srem(self._consumer_set, *members)

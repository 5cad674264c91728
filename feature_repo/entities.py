"""Online features of single entities: raw rows and pending events through the views' expressions.

The value now is the newest row at or before now, as in materialisation; only sooner, and from
events that have not landed. What is written here is made of everything known, so it is always
written, older or not than what is online: a correction may have moved an entity's last event.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.compute as pc
from feast.utils import _convert_arrow_to_proto
from filelock import FileLock, Timeout
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from feature_repo.events import EventFiles, arrived_after, key_of, not_aside
from feature_repo.features import redefined
from feature_repo.store import mark, online_client, open_store
from stack.errors import FeaturesUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from feature_repo.definition import Dataset
    from feature_repo.events import Key, Row
    from stack.settings import Settings
    from stack.storage import Table

DEADLINE = 0.5
"""Seconds that Redis may take; who sent the event waits."""
LOCK_SECONDS = 10.0
TOGETHER = 1_000
"""Rows whose entities are brought online in one go; other processes wait for their turn."""
logger = logging.getLogger(__name__)


class EntityFeatures:
    """Writes the features of the entities that events are about; for one thread at a time."""

    def __init__(self, settings: Settings, dataset: Dataset, raw: Table, quarantine: Table) -> None:
        self._settings = settings
        self._dataset, self._raw, self._quarantine = dataset, raw, quarantine
        self._files = EventFiles(settings, dataset)
        self._store = open_store(settings, DEADLINE)
        self._store.config.online_store.skip_dedup = True
        self._redis = online_client(self._store)
        self._redis.set_retry(Retry(NoBackoff(), 0))
        # Reading and writing are one step for all processes: nobody writes what is outdated.
        self._turn = FileLock(settings.events / f"{dataset.name}.lock", LOCK_SECONDS,
                              poll_interval=0.005)  # fmt: skip

    def bring_online(self, rows: Sequence[Row], moment: datetime) -> list[Row]:
        """Bring the entities of `rows`, which are on file or were, to what is known at `moment`.

        Nothing is turned back: what was materialised up to a later time stays at that time. An
        entity without any row (its only event went to quarantine) becomes unknown again. Returns
        the rows that an expression cannot take, such as an amount beyond its decimals.

        Raises:
            FeaturesUnavailableError: Redis does not answer in time, or does not hold the views, or
                ingest has not accepted the expressions of the code.

        """
        parts = (rows[at : at + TOGETHER] for at in range(0, len(rows) or 1, TOGETHER))
        return [row for part in parts for row in self._bring_online(part, moment)]

    def _bring_online(self, rows: Sequence[Row], moment: datetime) -> list[Row]:
        try:
            with self._turn:
                self._refresh(rows, moment)
        except (RedisError, Timeout) as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc
        except (duckdb.Error, pa.ArrowException) as exc:
            if len(rows) <= 1:
                logger.warning("%s: %s: %s", self._dataset.name, type(exc).__name__, exc)
                return [*rows]
            half = len(rows) // 2
            return [*self._bring_online(rows[:half], moment),
                    *self._bring_online(rows[half:], moment)]  # fmt: skip
        return []

    def _refresh(self, rows: Sequence[Row], moment: datetime) -> None:
        views = [self._store.get_feature_view(name) for name in self._dataset.views]
        if self._redis.exists(*(mark(self._store, view.name) for view in views)) < len(views):
            raise FeaturesUnavailableError("Redis holds no features (any more): gyre ingest")
        if changed := redefined(self._settings, self._dataset, self._raw):
            remedy = f"run: gyre ingest {self._dataset.name}"
            raise FeaturesUnavailableError(f"{', '.join(changed)}: expression changed; {remedy}")
        times = [row[self._dataset.event_time] for row in rows]  # our clock may be behind
        for view in views:
            until = max(moment, *times, view.most_recent_end_time or moment)
            for table in self._newest(view, rows, until):
                self._write(view, table)

    def close(self) -> None:
        self._redis.close()

    def _newest(self, view: Any, rows: Sequence[Row], until: datetime) -> Iterator[pa.Table]:
        """Newest feature rows of the entities concerned, and rows of nulls for those gone."""
        joins, expression = view.join_keys, self._dataset.views[view.name]
        known, ever = self._known_rows(rows)

        def rows_of(part: Sequence[Row]) -> Any:
            return expression(ibis.memtable(pa.Table.from_pylist(part, schema=self._raw.schema)))

        with _connection() as connection:
            found = connection.to_pyarrow(rows_of(known))
            if joins != [self._dataset.entity]:  # else the rows say it: half the time of an event
                keys = rows_of(ever).select(joins).distinct()
                ever = connection.to_pyarrow(keys).to_pylist()
        found = found.filter(pc.field("event_timestamp") <= pa.scalar(until))
        found = found.sort_by("event_timestamp")
        numbered = found.append_column("_position", pa.array(range(found.num_rows), pa.int64()))
        last = numbered.group_by(joins).aggregate([("_position", "max")])
        newest = found.take(last["_position_max"])
        yield newest
        there = {key_of(row, joins) for row in newest.select(joins).to_pylist()}
        before = {key_of(row, joins) for row in ever}
        times = {"event_timestamp": until, "created": until}
        gone = [dict(zip(joins, entity, strict=True)) | times for entity in before - there]
        yield pa.Table.from_pylist(gone, schema=found.schema)

    def _write(self, view: Any, table: pa.Table) -> None:
        if not table.num_rows:
            return
        kinds = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        rows = _convert_arrow_to_proto(table.combine_chunks(), view, kinds)
        provider, config = self._store._get_provider(), self._store.config  # noqa: SLF001
        provider.online_write_batch(config, view, rows, None)

    def _known_rows(self, rows: Sequence[Row]) -> tuple[list[Row], ...]:
        """Every row known of the entities that `rows` are or were about.

        And beside these what they were before: of any row all that was ever said, as far as it is
        still known.
        """
        key, entity = self._dataset.key, (self._dataset.entity,)
        # Files before the table: what ingest takes from one to the other meanwhile is in both.
        events = not_aside(self._files.read(), self._quarantine)
        sent = {key_of(row, key) for row in rows}
        before = raw_rows(self._raw, {tuple(key): sent})
        before += [event.row for event in events if key_of(event.row, key) in sent]
        entities = {key_of(row, entity) for row in (*rows, *before)}
        moved = {key_of(e.row, key) for e in events if key_of(e.row, entity) in entities}
        found = raw_rows(self._raw, {tuple(key): moved, entity: entities})
        standing = {key_of(row, key): row for row in found}
        keys = moved | standing.keys()
        concerned = [event for event in events if key_of(event.row, key) in keys]
        newer = arrived_after(standing, concerned, key)
        known = standing | {of: e.row | {"ingested_at": e.received} for of, e in newer.items()}
        ever = (*known.values(), *rows, *before, *found, *(event.row for event in concerned))
        parts = known.values(), ever
        return tuple([row for row in part if key_of(row, entity) in entities] for part in parts)


def raw_rows(raw: Table, wanted: Mapping[tuple[str, ...], Collection[Key]]) -> list[Row]:
    """Rows of a raw table whose values in certain columns are among those wanted, for any entry."""
    files, wanted = raw.files(), {columns: of for columns, of in wanted.items() if of}
    if not files or not wanted:
        return []
    with _connection() as connection:
        rows = connection.read_parquet(files)
        parts = []
        for columns, values in wanted.items():
            lists = zip(columns, zip(*values, strict=True), strict=True)
            kinds = {name: raw.schema.field(name).type for name in columns}
            given = {name: pa.array(column, kinds[name]) for name, column in lists}
            parts.append(rows.semi_join(ibis.memtable(pa.table(given)), columns))
        found: list[Row] = connection.to_pyarrow(ibis.union(*parts, distinct=True)).to_pylist()
    return found


@contextmanager
def _connection() -> Iterator[Any]:
    """DuckDB for one step, as features.open_raw has it."""
    connection = ibis.duckdb.connect(threads=1)
    try:
        connection.raw_sql("SET TimeZone = 'UTC'")
        yield connection
    finally:
        connection.disconnect()

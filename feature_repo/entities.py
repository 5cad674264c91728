"""Online features of single entities: raw rows through the views' expressions.

The value now is the newest row at or before now, as in materialisation; only sooner. What is
written here is made of everything known, so it is always written, older or not than what is online:
a correction may have moved an entity's last event.
"""

from __future__ import annotations

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

from feature_repo.features import redefined
from feature_repo.store import mark, online_client, open_store
from stack.errors import FeaturesUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.storage import Table

Row = dict[str, Any]
Key = tuple[Any, ...]
Values = list[tuple[Any, pa.Table]]
"""Feast's view, and the rows to write of it; nulls of entities that are gone."""
DEADLINE = 0.5
"""Seconds that Redis may take."""
LOCK_SECONDS = 10.0
TOGETHER = 1_000
"""Rows whose entities are brought online in one go; other processes wait for their turn."""
UNFIT = (duckdb.DataError, duckdb.InvalidInputException, pa.ArrowInvalid)
"""What an expression raises at a value that it cannot take."""


class EntityFeatures:
    """Writes the features of the entities that raw rows are about; for one thread at a time."""

    def __init__(self, settings: Settings, dataset: Dataset, raw: Table) -> None:
        self._settings, self._dataset, self._raw = settings, dataset, raw
        self._store = open_store(settings, DEADLINE)
        self._store.config.online_store.skip_dedup = True
        self._redis = online_client(self._store)
        self._redis.set_retry(Retry(NoBackoff(), 0))
        settings.features.mkdir(parents=True, exist_ok=True)
        lock = settings.features / f"{dataset.name}.lock"
        self._lock = FileLock(lock, LOCK_SECONDS, poll_interval=0.005)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Make reading, computing and writing one step for all processes.

        So that nobody writes what is outdated.

        Raises:
            FeaturesUnavailableError: it is another's for more than 10 s.

        """
        try:
            with self._lock:
                yield
        except Timeout as exc:
            raise FeaturesUnavailableError(f"{self._dataset.name}: {exc}") from exc

    def problem(self) -> str | None:
        """Say why nothing may be written: values are missing, or of another expression."""
        remedy = f"run: gyre ingest {self._dataset.name}"
        views = [mark(self._store, name) for name in self._dataset.views]
        try:
            if self._redis.exists(*views) < len(views):
                return f"Redis holds no features (any more); {remedy}"
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc
        changed = redefined(self._settings, self._dataset, self._raw)
        return f"{', '.join(changed)}: expression changed; {remedy}" if changed else None

    def bring_online(self, rows: Sequence[Row], moment: datetime) -> None:
        """Bring the entities that `rows` are or were about to what the table holds.

        Raises:
            FeaturesUnavailableError: Redis does not answer in time, or does not hold the views, or
                ingest has not accepted the expressions of the code.

        """
        if rows and (problem := self.problem()):
            raise FeaturesUnavailableError(problem)
        for at in range(0, len(rows), TOGETHER):
            part = rows[at : at + TOGETHER]
            with self.turn():
                self.write(self.values(self.rows_of(part), part, moment))

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return every raw row of the entities of `rows`."""
        entity = (self._dataset.entity,)
        return raw_rows(self._raw, {entity: {key_of(row, entity) for row in rows}})

    def values(self, known: Sequence[Row], ever: Sequence[Row], moment: datetime) -> Values:
        """Compute the newest feature rows of some entities at `moment`.

        known: every row of these entities; ever: rows that were theirs. An entity of a row in
        `ever` that has none any more becomes unknown. Nothing is turned back: what was materialised
        up to a later time stays at that time.

        Raises:
            One of UNFIT: an expression cannot take a value, such as an amount beyond its decimals.

        """
        times = [row[self._dataset.event_time] for row in ever]  # our clock may be behind
        found = []
        for name in self._dataset.views:
            view = self._store.get_feature_view(name)
            until = max(moment, *times, view.most_recent_end_time or moment)
            found += [(view, table) for table in self._newest(view, known, ever, until)]
        return found

    def write(self, values: Values) -> None:
        """Write what `values` computed; raise FeaturesUnavailableError if Redis does not answer."""
        provider, config = self._store._get_provider(), self._store.config  # noqa: SLF001
        try:
            for view, table in values:
                if table.num_rows:
                    kinds = {key.name: key.dtype.to_value_type() for key in view.entity_columns}
                    rows = _convert_arrow_to_proto(table.combine_chunks(), view, kinds)
                    provider.online_write_batch(config, view, rows, None)
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc

    def close(self) -> None:
        self._redis.close()

    def _newest(
        self, view: Any, known: Sequence[Row], ever: Sequence[Row], until: datetime
    ) -> Iterator[pa.Table]:
        """Newest feature rows of the entities concerned, and rows of nulls for those gone."""
        joins, expression = view.join_keys, self._dataset.views[view.name]
        before = [*known, *ever]

        def rows_of(part: Sequence[Row]) -> Any:
            return expression(ibis.memtable(pa.Table.from_pylist(part, schema=self._raw.schema)))

        with _connection() as connection:
            found = connection.to_pyarrow(rows_of(known))
            if joins != [self._dataset.entity]:  # else the rows say it: half the time of an event
                keys = rows_of(before).select(joins).distinct()
                before = connection.to_pyarrow(keys).to_pylist()
        found = found.filter(pc.field("event_timestamp") <= pa.scalar(until))
        found = found.sort_by("event_timestamp")
        numbered = found.append_column("_position", pa.array(range(found.num_rows), pa.int64()))
        last = numbered.group_by(joins).aggregate([("_position", "max")])
        newest = found.take(last["_position_max"])
        yield newest
        there = {key_of(row, joins) for row in newest.select(joins).to_pylist()}
        times = {"event_timestamp": until, "created": until}
        gone = {key_of(row, joins) for row in before} - there
        rows = [dict(zip(joins, entity, strict=True)) | times for entity in gone]
        yield pa.Table.from_pylist(rows, schema=found.schema)


def key_of(row: Row, columns: Sequence[str]) -> Key:
    return tuple(row[name] for name in columns)


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

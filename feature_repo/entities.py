"""Online features of single entities: raw rows through the views' expressions.

The value now is the newest row at or before now, as in materialisation; only sooner. What is
written here is made of everything known, so it is always written, older or not than what is online:
a correction may have moved an entity's last event.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import reduce
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from core.errors import FeaturesUnavailableError
from core.locks import one_writer
from core.settings import Settings
from core.storage import Table
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.extensions.engine import encoded, is_encodable
from feature_repo.extensions.online import NewestOnlineStore
from feature_repo.features import open_raw, redefined
from feature_repo.store import mark, online_client, online_store, open_store

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
    """Writes the features of the entities that raw rows are about; for one thread at a time.

    Every call raises FeaturesUnavailableError where Redis does not answer.
    """

    def __init__(self, settings: Settings, dataset: Dataset, raw: Table) -> None:
        self._settings, self._dataset, self._raw = settings, dataset, raw
        self._store = open_store(settings, DEADLINE)
        self._redis = online_client(self._store)  # None: other stores write whatever comes
        if self._redis is not None:
            self._store.config.online_store.skip_dedup = True
            self._redis.set_retry(Retry(NoBackoff(), 0))

    def turn(self) -> AbstractContextManager[None]:
        """Make reading, computing and writing one step for all processes.

        A DataError: it is another's for more than 10 s.
        """
        return one_writer(self._settings, f"features/{self._dataset.name}", LOCK_SECONDS)

    def problem(self) -> str | None:
        """Say why nothing may be written: values are missing, or of another expression."""
        remedy = f"run: gyre ingest {self._dataset.name}"
        views = [mark(self._store, name) for name in self._dataset.views]
        try:
            if self._redis is not None and self._redis.exists(*views) < len(views):
                return f"Redis holds no features (any more); {remedy}"
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc
        changed = redefined(self._settings, self._dataset, self._raw)
        return f"{', '.join(changed)}: expression changed; {remedy}" if changed else None

    def bring_online(self, rows: Sequence[Row], moment: datetime) -> None:
        """Bring the entities that `rows` are or were about to what the table holds.

        Raises:
            FeaturesUnavailableError: see `problem`.

        """
        if rows and (problem := self.problem()):
            raise FeaturesUnavailableError(problem)
        entity = (self._dataset.entity,)
        for at in range(0, len(rows), TOGETHER):
            part = rows[at : at + TOGETHER]
            with self.turn():
                known = raw_rows(self._raw, {entity: {key_of(row, entity) for row in part}})
                self.write(self.values(known, part, moment))

    def values(self, known: Sequence[Row], ever: Sequence[Row], moment: datetime) -> Values:
        """Compute the newest feature rows of some entities at `moment`.

        known: every row of these entities; ever: rows that were theirs. An entity of a row in
        `ever` that has none any more becomes unknown. Nothing is turned back: what was materialised
        up to a later time stays at that time.

        Raises:
            One of UNFIT: an expression cannot take a value, such as an amount beyond its decimals.

        """
        times = [row[self._dataset.event_time] for row in ever]  # our clock may be behind
        found: Values = []
        for name, expression in self._dataset.views.items():
            view = self._store.get_feature_view(name)
            until = max(moment, *times, view.most_recent_end_time or moment)
            keys = view.join_keys
            concerned: Sequence[Row] = [*known, *ever]
            with connected(threads=1) as connection:
                rows = connection.to_pyarrow(expression(self._memtable(known)))
                if keys != [self._dataset.entity]:  # else the rows say it, in half the time
                    derived = expression(self._memtable(concerned)).select(keys).distinct()
                    concerned = connection.to_pyarrow(derived).to_pylist()
            rows = rows.filter(pc.field("event_timestamp") <= until).sort_by("event_timestamp")
            newest = last_of_key(rows, keys)
            there = {key_of(row, keys) for row in newest.select(keys).to_pylist()}
            gone = {key_of(row, keys) for row in concerned} - there
            times_only = {"event_timestamp": until, "created": until}
            nulls = [dict(zip(keys, entity, strict=True)) | times_only for entity in gone]
            found += [(view, newest), (view, pa.Table.from_pylist(nulls, schema=rows.schema))]
        return found

    def _memtable(self, rows: Sequence[Row]) -> ir.Table:
        return ibis.memtable(pa.Table.from_pylist(rows, schema=self._raw.schema))

    def write(self, values: Values) -> None:
        """Write what `values` computed."""
        online, config = online_store(self._store), self._store.config
        try:
            for view, rows in values:
                if isinstance(online, NewestOnlineStore) and is_encodable(view, rows):
                    names = [feature.name for feature in view.features]
                    for keys, cells in encoded(view, rows, config.project):
                        online.write(config, view, names, keys, cells)
                elif rows.num_rows:
                    frame = rows.to_pandas(types_mapper=pd.ArrowDtype)
                    self._store.write_to_online_store(view.name, frame)
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()


def key_of(row: Row, columns: Sequence[str]) -> Key:
    return tuple(row[name] for name in columns)


def last_of_key(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Of rows that share a key the last; rows without a key all stay."""
    keyed = reduce(pc.and_, (pc.is_valid(rows[name]) for name in key))
    numbered = rows.append_column("_position", pa.array(np.arange(rows.num_rows)))
    last = numbered.filter(keyed).group_by(list(key)).aggregate([("_position", "max")])
    keyless = numbered.filter(pc.invert(keyed))["_position"]
    stay = pa.chunked_array([*last["_position_max"].chunks, *keyless.chunks], pa.int64())
    return rows.take(stay.sort())


def raw_rows(raw: Table, wanted: Mapping[tuple[str, ...], Collection[Key]]) -> list[Row]:
    """Rows of a raw table whose values in certain columns are among those wanted, for any entry."""
    with connected(threads=1) as connection:
        rows = open_raw(raw, connection=connection)
        parts = [rows.limit(0)]
        for columns, values in wanted.items():
            keys = [dict(zip(columns, each, strict=True)) for each in values]
            schema = pa.schema([raw.schema.field(name) for name in columns])
            given = ibis.memtable(pa.Table.from_pylist(keys, schema=schema))
            parts.append(rows.semi_join(given, columns))
        found: list[Row] = connection.to_pyarrow(ibis.union(*parts, distinct=True)).to_pylist()
    return found

"""Offline values as they may have stood online: at moments near one, and by what was known then.

The raw table's files say what was known, those of its older versions too: a correction takes its
row's place in the newest version, and the file that had the row stays until it is vacuumed.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import duckdb
import ibis
import pandas as pd
import pyarrow as pa

from feature_repo.engines.duckdb import DuckDBEngine
from feature_repo.entities import Key, Row, key_of
from feature_repo.features import TIME, raw_table, view_path, write_views
from feature_repo.store import FeatureStore, publish_beside
from stack.errors import DataError
from stack.moment import microseconds

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.spec import Entity

    Asked = tuple[Entity, datetime]
    """An entity, and the moment (UTC) that its request was about."""

TICK, FOREVER = timedelta(microseconds=1), datetime.max.replace(tzinfo=UTC)


def values_at(
    settings: Settings, service: str, names: Sequence[str], asked: Sequence[Asked]
) -> list[Row]:
    """Return the features `names` of each entity at its moment, by Feast's historical join.

    Raises:
        DataError: the service, or a view of it, is not published or not built.

    """
    return _joined(settings, service, names, [(key, at, at) for key, at in asked])


def values_near(
    settings: Settings,
    dataset: Dataset,
    service: str,
    names: Sequence[str],
    asked: Sequence[Asked],
    before: timedelta,
    after: timedelta,
) -> list[list[Row]]:
    """Return every set of features that each entity had in [at - before, at + after].

    The request's own moment stays `at`: only what is stored is of another.

    Raises:
        As `values_at` does.

    """
    moments = [{at - before, at} for _, at in asked]
    for n, change in _changes(settings, dataset, asked, before, after):
        moments[n].add(change - TICK if change <= asked[n][1] else change)
    flat = [(n, moment) for n, found in enumerate(moments) for moment in sorted(found)]
    rows = _joined(settings, service, names, [(asked[n][0], m, asked[n][1]) for n, m in flat])
    found: list[list[Row]] = [[] for _ in asked]
    for (n, _), row in zip(flat, rows, strict=True):
        found[n].append(row)
    return found


def _joined(
    settings: Settings,
    service: str,
    names: Sequence[str],
    asked: Sequence[tuple[Entity, datetime, datetime]],
) -> list[Row]:
    """Features of each entity as stored at the first moment, for a request of the second."""
    if not asked:
        return []
    frame = pd.DataFrame([dict(key) for key, _, _ in asked]).assign(
        event_timestamp=pd.to_datetime([at for _, at, _ in asked], utc=True),
        as_of=[microseconds(of) for _, _, of in asked],
        position=range(len(asked)),
    )
    found = FeatureStore(settings).historical(service, frame).sort_by("position")
    return list[Any](found.select(list(names)).to_pylist())


def _changes(
    settings: Settings,
    dataset: Dataset,
    asked: Sequence[Asked],
    before: timedelta,
    after: timedelta,
) -> list[tuple[int, datetime]]:
    """Positions in `asked`, and times of the entity's feature rows in (at - before, at + after]."""
    keys = [*asked[0][0]] if asked else []
    low, high = (pa.array([at + by for _, at in asked], TIME) for by in (-before, after))
    table = pa.Table.from_pylist([dict(key) for key, _ in asked])
    table = table.append_column("low", low).append_column("high", high)
    table = table.append_column("position", pa.array(range(len(asked)), pa.int64()))
    found = list[tuple[int, datetime]]()
    with closing(DuckDBEngine(None)) as engine:
        for view in dataset.views:
            files = [*map(str, view_path(settings, view).glob("*/*.parquet"))]
            if not files or not asked:
                continue
            rows = engine.connection.read_parquet(files)
            near = ibis.memtable(table)
            on = [near[key] == rows[key] for key in keys if key in rows.columns]
            at = rows.event_timestamp
            joined = near.inner_join(rows, [*on, at > near.low, at <= near.high])
            pairs = engine.connection.to_pyarrow(joined.select("position", "event_timestamp"))
            found += [(row["position"], row["event_timestamp"]) for row in pairs.to_pylist()]
    return found


class Knowledge:
    """What was known of some entities of a dataset at any moment that the raw table's files hold.

    Raises:
        DataError: a file of the raw table can no longer be read.

    """

    def __init__(self, settings: Settings, dataset: Dataset, entities: Collection[Any]) -> None:
        self._entity = dataset.entity
        self._stood = defaultdict[Key, list[Row]](list)
        """Of each key the rows that ever stood, newest first."""
        self._keys = defaultdict[Any, set[Key]](set)
        raw = raw_table(settings, dataset)
        files, kind = raw.all_files(), raw.schema.field(dataset.entity).type
        if not files:
            return
        try:
            with closing(DuckDBEngine(None)) as engine:
                rows = engine.connection.read_parquet(files).distinct()
                wanted = ibis.memtable(pa.table({dataset.entity: pa.array([*entities], kind)}))
                keys = rows.semi_join(wanted, dataset.entity).select(*dataset.key)
                rows = rows.semi_join(keys, dataset.key).order_by(ibis.desc("ingested_at"))
                found = engine.connection.to_pyarrow(rows).to_pylist()
        except duckdb.Error as exc:
            raise DataError(f"{dataset.name}: what was known cannot be read: {exc}") from exc
        for row in found:
            key = key_of(row, dataset.key)
            self._stood[key].append(row)
            self._keys[row[dataset.entity]].add(key)

    def news(self, entity: Any, after: datetime, until: datetime) -> list[datetime]:
        """When something became known of `entity` in (after, until], in order."""
        landed = {row["ingested_at"] for key in self._keys[entity] for row in self._stood[key]}
        return sorted(at for at in landed if after < at <= until)

    def states(self, entity: Any, after: datetime, until: datetime) -> list[list[Row]]:
        """Raw rows of `entity` as known at each moment in [after, until].

        None where nothing became known since `after`: it is what the table holds.
        """
        if not self.news(entity, after, FOREVER):
            return []
        return [self._rows(entity, at) for at in (after, *self.news(entity, after, until))]

    def _rows(self, entity: Any, at: datetime) -> list[Row]:
        known = dict[Key, Row]()
        for key in self._keys[entity]:
            row = next((row for row in self._stood[key] if row["ingested_at"] <= at), None)
            if row and row[self._entity] == entity:
                known[key] = row
        return [known[key] for key in sorted(known)]


@contextmanager
def store_of(settings: Settings, dataset: Dataset, rows: Sequence[Row]) -> Iterator[Settings]:
    """Settings of a home whose features are computed from `rows` (at least one) and nothing else.

    Raises:
        DataError: an expression cannot take them.

    """
    with TemporaryDirectory(prefix="gyre-known-") as name:
        beside = settings.model_copy(update={"home": Path(name), "engine": "duckdb"})
        raw = raw_table(beside, dataset)
        table = pa.Table.from_pylist(list(rows), schema=raw.schema)
        raw.merge(table, dataset.key, dataset.schema.names)
        try:
            write_views(beside, dataset, raw)
        except (duckdb.Error, pa.ArrowException) as exc:
            raise DataError(f"{dataset.name}: {exc}") from exc
        publish_beside(beside, dataset)
        yield beside

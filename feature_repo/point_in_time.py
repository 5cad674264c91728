"""Feature values of entities at past moments, and when the rows behind them became known."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

import duckdb
import ibis
import pandas as pd
import pyarrow as pa

from core.errors import DataError
from core.settings import Settings
from core.spec import Entity
from core.timestamps import microseconds
from feature_repo.definition import Dataset
from feature_repo.engines import DuckDBEngine
from feature_repo.features import TIME, raw_table, view_files
from feature_repo.store import FeatureStore

Row = dict[str, Any]
KeyValues = tuple[int | str, ...]

ARRIVALS = """
WITH arrivals AS (
  SELECT "{entity}" AS entity, "{time}" AS event_time, min(ingested_at) OVER past AS first,
    max(ingested_at) OVER past AS last
  FROM raw WHERE "{entity}" IN (SELECT entity FROM asked)
  WINDOW past AS (PARTITION BY "{entity}" ORDER BY "{time}"))
SELECT arrivals.first, arrivals.last FROM asked ASOF LEFT JOIN arrivals
ON asked.entity = arrivals.entity AND asked.moment >= arrivals.event_time
ORDER BY asked.position"""
"""Rows of the same event time are peers: each counts all of them."""


def values_at(
    settings: Settings,
    service: str,
    names: Sequence[str],
    asked: Sequence[tuple[Entity, datetime, datetime]],
) -> list[Row]:
    """Return the features `names` of each entity by Feast's historical join.

    asked: entity and its request data, the moment (UTC) of its stored values, the moment that its
    request was about.

    Raises:
        DataError: the service, or a view of it, is not published or not built.

    """
    if not asked:
        return []
    keys, stored, moments = zip(*asked, strict=True)
    frame = pd.DataFrame(keys).assign(
        event_timestamp=pd.to_datetime(stored, utc=True),
        as_of=[*map(microseconds, moments)],
        position=range(len(asked)),
    )
    features = FeatureStore(settings).historical(service, frame).sort_by("position")
    return list[Any](features.select(list(names)).to_pylist())


def change_points(
    settings: Settings,
    views: Iterable[str],
    keys: Sequence[Entity],
    since: datetime,
    until: datetime,
) -> dict[KeyValues, list[datetime]]:
    """Return when a row of `views` begins for each of `keys` in (since, until], ascending.

    keys: of the same columns; by their values in that order.
    """
    points: dict[KeyValues, set[datetime]] = {tuple(key.values()): set() for key in keys}
    wanted = ibis.memtable(pa.Table.from_pylist([dict(key) for key in keys]))
    with closing(DuckDBEngine()) as engine:
        for view in views:
            if not (files := view_files(settings, view)):
                continue
            rows = engine.connection.read_parquet(files)
            columns = [name for name in wanted.columns if name in rows.columns]
            time = rows.event_timestamp
            within = (time > ibis.literal(since)) & (time <= ibis.literal(until))
            found = wanted.join(rows.filter(within), columns)
            found = found.select(*wanted.columns, "event_timestamp").distinct()
            for *key, at in zip(
                *engine.connection.to_pyarrow(found).to_pydict().values(), strict=True
            ):
                points[tuple(key)].add(at)
    return {key: sorted(times) for key, times in points.items()}


def arrivals(
    settings: Settings,
    dataset: Dataset,
    entities: Collection[int | str],
    moments: Collection[datetime],
) -> list[tuple[datetime, datetime] | None]:
    """When each entity's raw rows dated at or before its moment became known: first and last.

    None where there is no such row.

    Raises:
        DataError: the raw table cannot be read.

    """
    raw = raw_table(settings, dataset)
    files = raw.files()
    if not files:
        return [None] * len(entities)
    kind = raw.schema.field(dataset.entity).type
    positions = pa.array(range(len(entities)))
    columns = [positions, pa.array(entities, kind), pa.array(moments, TIME)]
    asked = pa.table(columns, names=["position", "entity", "moment"])
    sql = ARRIVALS.format(entity=dataset.entity, time=dataset.event_time)
    try:
        with closing(duckdb.connect()) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.read_parquet(files).create_view("raw")
            connection.register("asked", asked)
            rows = connection.execute(sql).to_arrow_table().to_pylist()
    except duckdb.Error as exc:
        raise DataError(f"{dataset.name}: its raw rows cannot be read: {exc}") from exc
    return [(row["first"], row["last"]) if row["first"] else None for row in rows]

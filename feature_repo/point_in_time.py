"""Feature values of entities at past moments, and when the rows behind them became known."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import duckdb
import pandas as pd
import pyarrow as pa

from core.errors import DataError
from core.settings import Settings
from core.spec import Entity
from core.timestamps import microseconds
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.features import TIME, raw_table
from feature_repo.store import FeatureStore

ARRIVALS = """
WITH arrivals AS (
  SELECT "{entity}" AS entity, "{time}" AS event_time, min(ingested_at) OVER past AS first,
    max(ingested_at) OVER past AS last
  FROM raw WHERE "{entity}" IN (SELECT entity FROM moments)
  WINDOW past AS (PARTITION BY "{entity}" ORDER BY "{time}"))
SELECT arrivals.first, arrivals.last FROM moments ASOF LEFT JOIN arrivals
ON moments.entity = arrivals.entity AND moments.moment >= arrivals.event_time
ORDER BY moments.position"""
"""Rows of the same event time are peers: each counts all of them."""


class PastRead(NamedTuple):
    """A read of an entity's features.

    Args:
        entity: Keys and request data.
        moment: Time (UTC) of the stored values.
        as_of: Time (UTC) that the request was about.

    """

    entity: Entity
    moment: datetime
    as_of: datetime


def values_at(
    settings: Settings,
    service: str,
    feature_names: Sequence[str],
    reads: Sequence[PastRead],
) -> list[dict[str, Any]]:
    """Return the features of each read by Feast's historical join.

    Raises:
        DataError: The service, or a view of it, is not published or not built.

    """
    if not reads:
        return []
    frame = pd.DataFrame([read.entity for read in reads])
    frame["event_timestamp"] = pd.to_datetime([read.moment for read in reads], utc=True)
    frame["as_of"] = [microseconds(read.as_of) for read in reads]
    frame["position"] = range(len(reads))
    features = FeatureStore(settings).historical(service, frame)
    values = features.sort_by("position").select(list(feature_names))
    return list[Any](values.to_pylist())


def arrivals(
    settings: Settings,
    dataset: Dataset,
    entities: Collection[int | str],
    moments: Collection[datetime],
) -> list[tuple[datetime, datetime] | None]:
    """Return when each entity's raw rows dated at or before its moment became known.

    Returns:
        First and last arrival; None where there is no such row.

    Raises:
        DataError: The raw table cannot be read.

    """
    table = raw_table(settings, dataset)
    files = table.files()
    if not files:
        return [None] * len(entities)
    entity_values = pa.array(entities, table.schema.field(dataset.entity).type)
    moment_rows = pa.table(
        {
            "position": range(len(entities)),
            "entity": entity_values,
            "moment": pa.array(moments, TIME),
        }
    )
    sql = ARRIVALS.format(entity=dataset.entity, time=dataset.event_time)
    try:
        with connected() as connection:
            connection.read_parquet(files, table_name="raw")
            connection.con.register("moments", moment_rows)
            rows = connection.raw_sql(sql).to_arrow_table().to_pylist()
    except duckdb.Error as exc:
        raise DataError(f"{dataset.name}: its raw rows cannot be read: {exc}") from exc
    return [(row["first"], row["last"]) if row["first"] else None for row in rows]

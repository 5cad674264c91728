"""When the raw rows behind past feature values became known."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import ibis
import pyarrow as pa

from core.settings import Settings
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.features import raw_table


def arrivals(
    settings: Settings,
    dataset: Dataset,
    entities: Sequence[int | str],
    moments: Sequence[datetime],
) -> list[tuple[datetime, datetime] | None]:
    """Return when each entity's raw rows dated at or before its moment became known.

    Returns:
        First and last arrival; None where there is no such row.

    """
    spans: list[Any] = [None] * len(entities)
    files = raw_table(settings, dataset).files()
    if not files:
        return spans
    positions = range(len(entities))
    past_reads = pa.table({"position": positions, "key": entities, "moment": moments})
    with connected() as connection:
        rows = connection.read_parquet(files)
        reads = ibis.memtable(past_reads)
        is_past = rows[dataset.event_time] <= reads.moment
        past_rows = reads.join(rows, [reads.key == rows[dataset.entity], is_past])
        arrival = past_rows.ingested_at
        ranges = past_rows.group_by("position").agg(
            first=arrival.min(), last=arrival.max()
        )
        for row in connection.to_pyarrow(ranges).to_pylist():
            spans[row["position"]] = (row["first"], row["last"])
    return spans

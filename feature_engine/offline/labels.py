"""The labels of a dataset: its raw rows, and the expression over them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import ibis.expr.types as ir

from core.settings import Settings
from feature_engine.engines.engine import engine_connection
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.definition import Dataset
from feature_repo.engine import LabelSource


def dataset_labels(settings: Settings, dataset: Dataset, name: str) -> LabelSource:
    """Return the source of the label `name` of a dataset."""
    return LabelSource(
        name=dataset.name,
        remedy=f"run: gyre ingest {dataset.name}",
        label=dataset.labels[name],
        entity=dataset.entity,
        event_time=dataset.event_time,
        opened=partial(_opened_rows, settings, dataset),
    )


@contextmanager
def _opened_rows(
    settings: Settings, dataset: Dataset, as_of: datetime, version: int | None
) -> Iterator[ir.Table]:
    raw = raw_table(settings, dataset)
    with engine_connection(settings) as connection:
        yield open_raw(connection, raw, version, as_of)

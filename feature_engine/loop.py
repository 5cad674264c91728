"""What the loop asks of this package: the functions of `feature_repo.engine.FeatureEngine`."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from feature_engine.engines.engine import spark_connection
from feature_engine.ingest.record import read_record
from feature_engine.offline.arrived_rows import arrived_features
from feature_engine.offline.labels import dataset_labels
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import entities, require_built
from feature_engine.online.lost_rows import lost_rows
from feature_repo.definition import TABLE_TAG, Dataset
from feature_repo.engine import LateFeatures, RowsResult

__all__ = [
    "arrived_features",
    "check_datasets",
    "complete_until",
    "dataset_labels",
    "entities",
    "late_features",
    "lost_rows",
    "pins",
    "require_built",
    "spark_connection",
    "validate_rows",
]


def pins(settings: Settings, dataset: Dataset) -> dict[str, str]:
    """Return tags of a run that pin the raw table of a dataset as it is now."""
    table = raw_table(settings, dataset)
    tag = TABLE_TAG + dataset.name
    return {tag: str(table.version), f"{tag}.id": table.identity}


def complete_until(settings: Settings, dataset: Dataset) -> datetime:
    """Return up to when the rows of a dataset are known, aware UTC.

    They are known up to the last ingest or, where that is later, the newest arrival.

    Raises:
        TrainingError: There are no rows.

    """
    arrival = raw_table(settings, dataset).newest("ingested_at")
    if arrival is None:
        name = dataset.name
        raise TrainingError(f"{name}: no rows yet; run: gyre ingest {name}")
    watermark = read_record(settings, dataset.name).watermark or arrival
    return max(arrival, watermark)


def check_datasets(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> tuple[list[str], str]:
    """Check the datasets of a model: see `feature_engine.check`."""
    from feature_engine.check import check_datasets as check  # noqa: PLC0415  (it imports the stages)

    return check(settings, spec, as_of)


def validate_rows(
    settings: Settings, dataset: Dataset, version: int, as_of: datetime
) -> RowsResult:
    """Apply the rules of a dataset to raw rows: see `feature_engine.ingest.pinned_rows`."""
    from feature_engine.ingest.pinned_rows import validate_rows as validate  # noqa: PLC0415  (Great Expectations takes seconds to import)

    return validate(settings, dataset, version, as_of)


def late_features(
    settings: Settings,
    datasets: Iterable[str],
    as_of: datetime,
    age_limit: timedelta,
) -> Iterator[LateFeatures]:
    """Yield the problems of datasets whose features are too old, or whose source is silent."""
    for name in datasets:
        for incident, words in read_record(settings, name).problems(as_of, age_limit):
            yield LateFeatures(
                name=name,
                incident=incident,
                words=words,
                remedy=f"gyre ingest {name}",
                link=f"/data/{name}",
            )

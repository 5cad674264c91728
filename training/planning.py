"""The plan of a training: its snapshots, and the versions and hashes of what it would learn from."""

import logging
from dataclasses import dataclass
from datetime import datetime

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from feature_engine.engines.engine import engine_connection
from feature_engine.ingest.record import read_record
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.datasets import load_dataset
from feature_repo.definition import Dataset
from feature_repo.published.service import PublishedService
from training.data.snapshots import Plan, plan_snapshots
from training.inputs import fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """A training that could begin now.

    Attributes:
        plan: Its snapshots.
        until: Moment for which the snapshots are planned, aware UTC.
        first_event: Time of the first event that is known at `until`.
        table_version: Version of the raw table of the label's dataset.
        fingerprint: Hash that is the same for runs that would learn the same.

    """

    plan: Plan
    until: datetime
    first_event: datetime
    table_version: int
    fingerprint: str


def planned_run(
    settings: Settings, spec: ModelSpec, service: PublishedService, as_of: datetime
) -> PlannedRun:
    """Plan a training at `as_of`.

    Snapshots wait until each dataset of their features is known: up to its last ingest or, where
    that is later, its newest arrival.

    Raises:
        TrainingError: A dataset has no rows, or too little history has matured.

    """
    dataset = load_dataset(spec.dataset)
    label = dataset.labels[spec.label]
    until = as_of
    for name, read_dataset in service.datasets().items():
        arrival = raw_table(settings, read_dataset).newest("ingested_at")
        if arrival is None:
            raise TrainingError(f"{name}: no rows yet; run: gyre ingest {name}")
        watermark = read_record(settings, name).watermark or arrival
        complete_until = max(arrival, watermark)
        last_moment = complete_until + label.horizon + label.lateness
        if last_moment < until:
            until = last_moment
            log.warning(
                "%s: %s is known up to %s UTC, later snapshots wait: gyre ingest %s",
                spec.name,
                name,
                f"{complete_until:%Y-%m-%d %H:%M}",
                name,
            )
    table_version = raw_table(settings, dataset).version
    first_event = first_known_event(settings, dataset, until, table_version)
    plan = plan_snapshots(first_event, until, label, spec.snapshots)
    return PlannedRun(
        plan=plan,
        until=until,
        first_event=first_event,
        table_version=table_version,
        fingerprint=fingerprint(spec, plan.test[-1].start, service.definitions()),
    )


def first_known_event(
    settings: Settings, dataset: Dataset, as_of: datetime, version: int
) -> datetime:
    """Return the time of the first event that version `version` of the raw table has at `as_of`.

    Raises:
        TrainingError: There is no row.

    """
    raw = raw_table(settings, dataset)
    first_event: datetime | None = None
    if raw.exists:
        with engine_connection(settings) as connection:
            rows = open_raw(connection, raw, version, as_of)
            first_event = rows[dataset.event_time].min().to_pyarrow().as_py()
    if first_event is None:
        raise TrainingError(
            f"{dataset.name}: no row was known as of {as_of:%Y-%m-%d}; "
            f"run: gyre ingest {dataset.name}"
        )
    return first_event

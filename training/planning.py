"""The plan of a training: its snapshots, and the versions and hashes of what it would learn from."""

import logging
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.datasets import load_dataset
from feature_repo.definition import Dataset
from feature_repo.engine import LabelSource, feature_engine
from feature_repo.labels import label_source
from feature_repo.published.service import PublishedService, service_of
from training.data.frame import build_frame
from training.data.lineage import label_version
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
        tables: Tags that pin the raw tables of its datasets.
        fingerprint: Hash that is the same for runs that would learn the same.

    """

    plan: Plan
    until: datetime
    first_event: datetime
    tables: dict[str, str]
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
    source = label_source(settings, spec)
    label = source.label
    until = as_of
    for name, dataset in service.datasets().items():
        complete_until = feature_engine().complete_until(settings, dataset)
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
    tables: dict[str, str] = {}
    for dataset in used_datasets(spec, service).values():
        tables |= feature_engine().pins(settings, dataset)
    first_event = first_known_event(source, until, label_version(spec, tables))
    plan = plan_snapshots(first_event, until, label, spec.snapshots)
    return PlannedRun(
        plan=plan,
        until=until,
        first_event=first_event,
        tables=tables,
        fingerprint=fingerprint(spec, plan.test[-1].start, service.definitions()),
    )


def planned_frame(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> tuple[pa.Table, Plan]:
    """Return the frame of a training at `as_of`, from today's version of the label's rows.

    Raises:
        TrainingError: A dataset has no rows, or too little history has matured.

    """
    planned = planned_run(settings, spec, service_of(settings, spec), as_of)
    snapshots = planned.plan.snapshots
    source = label_source(settings, spec)
    version = label_version(spec, planned.tables)
    frame = build_frame(settings, spec, source, snapshots, as_of, version)
    return frame, planned.plan


def used_datasets(spec: ModelSpec, service: PublishedService) -> dict[str, Dataset]:
    """Return the datasets of the features and of the spec, by name."""
    datasets = service.datasets()
    for name in spec.datasets:
        datasets.setdefault(name, load_dataset(name))
    return datasets


def first_known_event(
    source: LabelSource, as_of: datetime, version: int | None
) -> datetime:
    """Return the time of the first event that version `version` of the source has at `as_of`.

    Raises:
        TrainingError: There is no row.

    """
    with source.opened(as_of, version) as rows:
        first_event: datetime | None = (
            rows[source.event_time].min().to_pyarrow().as_py()
        )
    if first_event is None:
        raise TrainingError(
            f"{source.name}: no row was known as of {as_of:%Y-%m-%d}; {source.remedy}"
        )
    return first_event

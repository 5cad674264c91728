"""Stage 1: is there something to learn from, and something new?"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from core.errors import SettingsError, TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from core.storage import Table
from feature_repo.dataset_record import read_record
from feature_repo.datasets import dataset_of, load_dataset
from feature_repo.definition import Dataset
from feature_repo.engines import engine_connection
from feature_repo.features import open_raw, raw_table
from feature_repo.service import PublishedService
from mlflow_server.tracking import Run, Tracking
from training.artifacts import SPEC
from training.estimators import estimator_problems
from training.frame import TIME, extent, labelled_rows, require_memory
from training.lineage import FINGERPRINT, PLANNED_TAG, run_tags, table_tags
from training.snapshots import Plan, plan

log = logging.getLogger(__name__)
RUN_NAME_LIMIT = 250
"""Of MLflow's table; SQLite does not hold to it, Postgres does."""
LONGEST = timedelta(hours=12)
"""A run that goes on for longer has died: all tries of its tasks (dags/train.py) take less."""
NOTHING_NEW = (
    "nothing new to learn: no snapshot matured since an earlier run, and spec, code and feature "
    "definitions are unchanged"
)


def open_run(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    *,
    key: str,
    reason: str,
    who: str,
    cause: str | None = None,
    force: bool = False,
) -> str | None:
    """Validate what a run at `as_of` would learn from, and start its MLflow run; return its id.

    key: the same key gives the same run. cause: what the run answers, such as a drift. None: there
    is nothing to do, as another run answers the cause or learnt the same.
    """
    dataset, tracking = load_dataset(spec.dataset), Tracking(settings)
    service = PublishedService(settings, spec.feature_service)
    others = [run for run in tracking.runs(spec.experiment) if run.key != key]
    if cause and _answered(others, cause, as_of):
        return None
    _refuse_mismatches(spec, dataset, service)
    until, tables = (
        planned_until(settings, spec, as_of),
        _pinned_tables(settings, dataset, service),
    )
    planned = plan_run(settings, spec, dataset, until, tables[0][1])
    tags = run_tags(spec, planned.test[-1].start, service.definitions())
    if not force and _seen(others, tags[FINGERPRINT]):
        return None
    tags |= {
        "as_of": as_of.isoformat(),
        "reason": reason,
        "who": who,
        "cause": cause or "",
    }
    tags[PLANNED_TAG] = until.isoformat()
    for pinned in tables:
        tags |= table_tags(*pinned)
    name = f"{as_of:%Y-%m-%d} {reason}"[:RUN_NAME_LIMIT]
    run_id = tracking.start_or_find_run(spec.experiment, key, name, tags)
    with tracking.on_record(run_id):
        tracking.log_text(run_id, spec.model_dump_json(), SPEC)
        _log_extent(settings, spec, planned, as_of, *tables[0])
    return run_id


def _refuse_mismatches(
    spec: ModelSpec, dataset: Dataset, service: PublishedService
) -> None:
    if problems := [*mismatches(spec, dataset, service), *estimator_problems(spec)]:
        raise SettingsError("\n".join(problems))


def _pinned_tables(
    settings: Settings, dataset: Dataset, service: PublishedService
) -> list[tuple[Table, int, Dataset]]:
    """Return the raw table and its version now of each dataset; the label's comes first."""
    datasets = {dataset.name: dataset} | service.datasets()
    return [
        (raw := raw_table(settings, each), raw.version, each)
        for each in datasets.values()
    ]


def _log_extent(
    settings: Settings,
    spec: ModelSpec,
    planned: Plan,
    as_of: datetime,
    table: Table,
    version: int,
    dataset: Dataset,
) -> None:
    with engine_connection(settings) as connection:
        rows = open_raw(table, version, as_of, connection)
        labelled = labelled_rows(spec, dataset, planned.snapshots, rows)
    log.info(extent(spec, planned, labelled))
    require_memory(spec, labelled.num_rows)


def learnable(settings: Settings, spec: ModelSpec, as_of: datetime) -> bool:
    """Whether a run at `as_of` would see anything that no finished run has seen."""
    definitions = PublishedService(settings, spec.feature_service).definitions()
    tags = run_tags(spec, newest_snapshot(settings, spec, as_of), definitions)
    return not _seen(Tracking(settings).runs(spec.experiment), tags[FINGERPRINT])


def newest_snapshot(settings: Settings, spec: ModelSpec, as_of: datetime) -> datetime:
    """The newest snapshot whose labels are known at `as_of`."""
    dataset = load_dataset(spec.dataset)
    version = raw_table(settings, dataset).version
    as_of = planned_until(settings, spec, as_of)
    return plan_run(settings, spec, dataset, as_of, version).test[-1].start


def answered(
    settings: Settings,
    spec: ModelSpec,
    cause: str,
    decided: Sequence[datetime],
    as_of: datetime,
) -> bool:
    """Whether a retraining of `cause` has finished, or is on its way at `as_of`.

    decided: when retrainings of it were. One without an MLflow run is on its way for 12 hours.
    """
    runs = Tracking(settings).runs(spec.experiment)
    begun = {run.tags["as_of"] for run in runs if run.tags.get("cause") == cause}
    coming = (
        at for at in decided if at.isoformat() not in begun and as_of - at <= LONGEST
    )
    return any(coming) or _answered(runs, cause, as_of)


def fail_run(settings: Settings, spec: ModelSpec, key: str) -> None:
    """End the run of `key`, should it still go on, as failed: it answers its cause no more."""
    tracking = Tracking(settings)
    for run in tracking.runs(spec.experiment):
        if run.key == key and run.status == "RUNNING":
            tracking.fail(
                run.run_id, f"a task was ended from outside: see the logs of {key}"
            )


def _seen(runs: Sequence[Run], fingerprint: str) -> bool:
    finished = (run for run in runs if run.status == "FINISHED")
    return any(run.tags.get(FINGERPRINT) == fingerprint for run in finished)


def _answered(runs: Sequence[Run], cause: str, as_of: datetime) -> bool:
    for run in runs:
        if run.tags.get("cause") == cause:
            late = as_of - datetime.fromisoformat(run.tags["as_of"]) > LONGEST
            if run.status == "FINISHED" or (run.status == "RUNNING" and not late):
                return True
    return False


def planned_until(settings: Settings, spec: ModelSpec, as_of: datetime) -> datetime:
    """Return the moment to plan for: snapshots wait until each dataset of their features is known.

    It is known up to its last ingest or, where that is later, its newest arrival. Raises a
    TrainingError where one has no rows.
    """
    service = PublishedService(settings, spec.feature_service)
    label = load_dataset(spec.dataset).labels[spec.label]
    until = as_of
    for each in service.datasets().values():
        arrival = raw_table(settings, each).newest("ingested_at")
        if arrival is None:
            raise TrainingError(
                f"{each.name}: no rows yet; run: gyre ingest {each.name}"
            )
        known = max(arrival, read_record(settings, each.name).watermark or arrival)
        if (end := known + label.horizon + label.lateness) < until:
            until, text = end, f"{each.name} is known up to {known:%Y-%m-%d %H:%M} UTC"
            log.warning(
                "%s: %s, later snapshots wait: gyre ingest %s",
                spec.name,
                text,
                each.name,
            )
    return until


def plan_run(
    settings: Settings, spec: ModelSpec, dataset: Dataset, as_of: datetime, version: int
) -> Plan:
    """Plan the snapshots that raw version `version` allows at `as_of`."""
    rows = raw_table(settings, dataset).read(
        version, [dataset.event_time], _known(as_of)
    )
    first = pc.min(rows[dataset.event_time]).as_py()
    if first is None:
        none = f"{dataset.name}: no row was known as of {as_of:%Y-%m-%d}"
        raise TrainingError(f"{none}; run: gyre ingest {dataset.name}")
    return plan(first, as_of, dataset.labels[spec.label], spec.snapshots)


def _known(as_of: datetime) -> pc.Expression:
    return pc.field("ingested_at") <= pa.scalar(as_of, TIME)


def mismatches(
    spec: ModelSpec, dataset: Dataset, service: PublishedService
) -> list[str]:
    """One line for each key of the spec that asks for what dataset or Feast do not have."""
    lines, published = list[str](), service.features
    # DataError for request data that no request can bring.
    given = published | service.request_data
    if spec.label not in dataset.labels:
        lines.append(
            f"label: {spec.label!r} is not of {dataset.name}: {', '.join(dataset.labels)}"
        )
    for name, kind in spec.features.items():
        if name not in published:
            expected = f"expected one of {spec.feature_service}: {', '.join(published)}"
            lines.append(f"features.{name}: {expected}; found {name}")
        elif published[name] != kind:
            lines.append(f"features.{name}: expected {published[name]}, found {kind}")
    for name, kind in spec.audit.items():  # else a column of the label's rows
        if given.get(name, kind) != kind:
            lines.append(f"audit.{name}: expected {given[name]}, found {kind}")
    if service.key_types != spec.entity_key:
        lines.append(
            f"entity_key: expected {service.key_types}, found {spec.entity_key}"
        )
    for name in service.join_keys:
        if name not in dataset.views and dataset_of(name) is None:
            expected = f"expected views of a Dataset in feature_repo/datasets, found {name} of none"
            lines.append(f"feature_service: {spec.feature_service}: {expected}")
    return [f"{spec.name}.toml: {line}" for line in lines]

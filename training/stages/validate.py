"""Stage 1, validate: is there something to learn from, and something new?

Another run may answer the same cause; spec and feature service must fit together; the snapshots of
the run are planned; a run that learnt the same ends it. Else its MLflow run starts, with tags that
name everything that it will be made of, and the raw rows must pass Great Expectations.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta

from core.errors import SettingsError, TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from feature_engine.engines.engine import engine_connection
from feature_engine.ingest.record import read_record
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.datasets import dataset_of, load_dataset
from feature_repo.definition import Dataset, table_versions
from feature_repo.published.service import PublishedService
from feature_repo.rules import suite_file
from mlflow_server.api.pages import Pages
from mlflow_server.api.tracking import Run, Tracking
from mlflow_server.tags import KEY_TAG, tag_equals
from training.artifacts import EXPECTATIONS, SPEC
from training.data.lineage import (
    FINGERPRINT,
    PLANNED_TAG,
    fingerprint,
    input_tags,
    table_tags,
)
from training.data.snapshots import Plan, next_matures, plan
from training.model.estimators import estimator_problems
from training.stages.expectations import validate_rows

log = logging.getLogger(__name__)
EXPECTATIONS_TAG = "gyre.expectations."
"""Beginning of the tags that say what Great Expectations says of a dataset's raw rows."""
LONGEST = timedelta(hours=12)
"""A run that goes on for longer has died: all tries of its tasks (dags/train.py) take less."""
ABOUT_EXPERIMENT = (
    "A run is a training. Its metrics on the test rows (`test/`) stand beside those of the best "
    "constant (`baseline/`) and of the version then in production (`champion/`); its artifact "
    "`model_card.html` says more."
)
"""What MLflow's page of the experiment says above its runs."""
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
    """Start the MLflow run of a training at `as_of`, and return its id.

    Args:
        settings: Of the installation.
        spec: The model.
        as_of: What the run may know.
        key: The same key gives the same run.
        reason: Why it is trained, for people.
        who: Who asked for it.
        cause: What the run answers, such as a drift.
        force: Whether to train with nothing new to learn.

    Returns:
        None if there is nothing to do: another run answers the cause or learnt the same.

    Raises:
        SettingsError: The spec does not fit dataset or feature service.
        TrainingError: There is nothing to learn from.

    """
    tracking = Tracking(settings)
    if cause and _is_answered(tracking, spec, cause, key, as_of):
        return None
    dataset = load_dataset(spec.dataset)
    service = PublishedService(settings, spec.feature_service)
    definitions = service.definitions()
    problems = [*mismatches(spec, dataset, service), *estimator_problems(spec)]
    if problems:
        raise SettingsError("\n".join(problems))
    inputs, _, until, table_version = _inputs(settings, spec, service, as_of)
    same_runs = _finished_runs(tracking, spec, inputs)
    if not force and any(run.key != key for run in same_runs):
        return None
    tags = input_tags(spec, definitions) | {
        FINGERPRINT: inputs,
        "as_of": as_of.isoformat(),
        PLANNED_TAG: until.isoformat(),
        "reason": reason,
        "who": who,
        "cause": cause or "",
    }
    datasets = service.datasets() | {dataset.name: dataset}
    for read_dataset in datasets.values():
        table = raw_table(settings, read_dataset)
        is_own = read_dataset.name == dataset.name
        pinned_version = table_version if is_own else table.version
        tags |= table_tags(read_dataset.name, table, pinned_version)
    name = f"{as_of:%Y-%m-%d} {reason}"
    run_id = tracking.start_or_find_run(
        spec.experiment, key, name, tags, about=ABOUT_EXPERIMENT
    )
    with tracking.on_record(run_id):
        tracking.log_text(run_id, spec.model_dump_json(), SPEC)
        _validate_rows(settings, run_id, datasets)
    return run_id


def _validate_rows(
    settings: Settings, run_id: str, datasets: Mapping[str, Dataset]
) -> None:
    """Hold the raw rows that a run is pinned to against Great Expectations.

    Its tags say which; at another try they are those of the first.

    Raises:
        TrainingError: A rule fails.

    """
    tracking = Tracking(settings)
    tags = tracking.run(run_id).tags
    as_of = datetime.fromisoformat(tags["as_of"])
    for name, version in table_versions(tags).items():
        result = validate_rows(settings, datasets[name], version, as_of)
        if result.rejections:
            page = f"{EXPECTATIONS}/{name}.html"
            tracking.log_text(run_id, result.page, page)
            link = f"{Pages(settings).run(run_id)}/artifacts/{page}"
            raise TrainingError(
                f"{name}: {result.words}: {'; '.join(result.rejections)}. Correct the rule in "
                f"{suite_file(datasets[name])}, or the rows at the source. All rules: {link}"
            )
        tracking.log(run_id, tags={f"{EXPECTATIONS_TAG}{name}": result.words})


def _is_answered(
    tracking: Tracking, spec: ModelSpec, cause: str, key: str, as_of: datetime
) -> bool:
    """Return whether another run of a cause has finished, or may still do so."""
    for run in tracking.runs(spec.experiment, tag_equals("cause", cause)):
        is_alive = as_of - moment_of(run) <= LONGEST
        may_answer = run.status == "FINISHED" or (run.status == "RUNNING" and is_alive)
        if run.key != key and may_answer:
            return True
    return False


def _finished_runs(tracking: Tracking, spec: ModelSpec, inputs: str) -> list[Run]:
    """Return the runs that finished and learnt what a run with this fingerprint would learn."""
    is_same = tag_equals(FINGERPRINT, inputs)
    return tracking.runs(spec.experiment, f"{is_same} AND status = 'FINISHED'")


def nothing_new(settings: Settings, spec: ModelSpec, as_of: datetime) -> str | None:
    """Say that a run at `as_of` would see what a finished run has seen, and when it would not.

    Raises:
        TrainingError: There is nothing to learn from.
        RegistryError, DataError: A store that it needs does not answer.

    """
    service = PublishedService(settings, spec.feature_service)
    inputs, planned, _, _ = _inputs(settings, spec, service, as_of)
    if not _finished_runs(Tracking(settings), spec, inputs):
        return None
    label = load_dataset(spec.dataset).labels[spec.label]
    matures = next_matures(planned.test[-1], label, spec.snapshots)
    news = f"the next rows mature at {matures:%Y-%m-%d %H:%M} UTC"
    if matures <= as_of:
        news = f"rows that matured at {matures:%Y-%m-%d %H:%M} UTC wait for an ingest"
    return f"nothing new to learn: {news}"


def _inputs(
    settings: Settings, spec: ModelSpec, service: PublishedService, as_of: datetime
) -> tuple[str, Plan, datetime, int]:
    """Return the fingerprint of a run, its plan, the plan's moment, and the raw version."""
    dataset = load_dataset(spec.dataset)
    until = _planned_until(settings, spec, service, as_of)
    version = raw_table(settings, dataset).version
    planned = plan_run(settings, spec, dataset, until, version)
    inputs = fingerprint(spec, planned.test[-1].start, service.definitions())
    return inputs, planned, until, version


def moment_of(run: Run) -> datetime:
    """Return the `as_of` of a training; it answers what was decided up to then."""
    as_of = run.tags.get("as_of")
    return datetime.fromisoformat(as_of) if as_of else BEGINNING


def fail_run(settings: Settings, spec: ModelSpec, key: str) -> None:
    """End the run of `key`, should it still go on, as failed: it answers its cause no more."""
    tracking = Tracking(settings)
    outcome = f"a task was ended from outside: see the logs of {key}"
    for run in tracking.runs(spec.experiment, tag_equals(KEY_TAG, key)):
        if run.status == "RUNNING":
            tracking.end(run.run_id, outcome, "FAILED")


def _planned_until(
    settings: Settings, spec: ModelSpec, service: PublishedService, as_of: datetime
) -> datetime:
    """Return the moment to plan for: snapshots wait until each dataset of their features is known.

    It is known up to its last ingest or, where that is later, its newest arrival.

    Raises:
        TrainingError: A dataset has no rows.

    """
    label = load_dataset(spec.dataset).labels[spec.label]
    until = as_of
    for name, dataset in service.datasets().items():
        arrival = raw_table(settings, dataset).newest("ingested_at")
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
    return until


def plan_run(
    settings: Settings, spec: ModelSpec, dataset: Dataset, as_of: datetime, version: int
) -> Plan:
    """Plan the snapshots that raw version `version` allows at `as_of`."""
    raw = raw_table(settings, dataset)
    first_event = None
    if raw.exists:
        with engine_connection(settings) as connection:
            rows = open_raw(raw, version, as_of, connection)
            first_event = rows[dataset.event_time].min().to_pyarrow().as_py()
    if first_event is None:
        raise TrainingError(
            f"{dataset.name}: no row was known as of {as_of:%Y-%m-%d}; "
            f"run: gyre ingest {dataset.name}"
        )
    return plan(first_event, as_of, dataset.labels[spec.label], spec.snapshots)


def mismatches(
    spec: ModelSpec, dataset: Dataset, service: PublishedService
) -> list[str]:
    """Return a line for each key of the spec that asks for what dataset or Feast do not have."""
    lines: list[str] = []
    published: Mapping[str, str] = service.features
    # Raises for request data that no request can bring.
    available = {**published, **service.request_data}
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
        if available.get(name, kind) != kind:
            lines.append(f"audit.{name}: expected {available[name]}, found {kind}")
    if service.key_types != spec.entity_key:
        lines.append(
            f"entity_key: expected {service.key_types}, found {spec.entity_key}"
        )
    for name in service.join_keys:
        if name not in dataset.views and dataset_of(name) is None:
            expected = f"expected views of a Dataset in feature_repo/datasets, found {name} of none"
            lines.append(f"feature_service: {spec.feature_service}: {expected}")
    return [f"{spec.name}.toml: {line}" for line in lines]

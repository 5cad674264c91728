"""MLflow runs of trainings: which one is opened, which one answered a cause, which one failed."""

from datetime import datetime, timedelta

from core.errors import SettingsError
from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from feature_repo.labels import label_source
from feature_repo.published.service import service_of
from mlflow_server.api.tracking import Run, Tracking
from mlflow_server.tags import KEY_TAG, tag_equals
from training.artifacts import SPEC
from training.data.lineage import (
    FINGERPRINT,
    FIRST_EVENT_TAG,
    PLANNED_TAG,
)
from training.data.snapshots import next_matures
from training.inputs import input_tags
from training.model.estimators import estimator_problems
from training.planning import planned_run, used_datasets
from training.stages.validate import mismatches, validate

LONGEST_RUN = timedelta(hours=12)
"""A run that goes on for longer has died: all tries of its tasks (dags/train.py) take less."""
ABOUT_EXPERIMENT = (
    "A run is a training. Its metrics on the test rows (`test/`) stand beside the metrics of the "
    "best constant (`baseline/`) and of the version then in production (`champion/`); its artifact "
    "`model_card.html` says more."
)
"""Description of the experiment on its page in MLflow."""
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
    """Start the MLflow run of a training at `as_of`, validate its raw rows, and return its id.

    Args:
        settings: Settings of the installation.
        spec: The model.
        as_of: Moment up to which the run knows rows, aware UTC.
        key: Key of the run: the same key gives the same run.
        reason: Why it is trained, for people.
        who: Person or program that asked for it.
        cause: Name of the decision that the run answers, such as a drift.
        force: Whether to train with nothing new to learn.

    Returns:
        None if there is nothing to do: another run answers the cause or learnt the same.

    Raises:
        SettingsError: The spec does not fit dataset or feature service.
        TrainingError: There is nothing to learn from, or the raw rows break a rule.

    """
    tracking = Tracking(settings)
    if cause and _is_answered(tracking, spec, cause, key, as_of):
        return None
    service = service_of(settings, spec)
    problems = [*mismatches(spec, service), *estimator_problems(spec)]
    if problems:
        raise SettingsError("\n".join(problems))
    planned = planned_run(settings, spec, service, as_of)
    same_runs = _finished_runs(tracking, spec, planned.fingerprint)
    if not force and any(run.key != key for run in same_runs):
        return None
    tags = input_tags(spec, service.definitions()) | {
        FINGERPRINT: planned.fingerprint,
        FIRST_EVENT_TAG: planned.first_event.isoformat(),
        PLANNED_TAG: planned.until.isoformat(),
        "as_of": as_of.isoformat(),
        "reason": reason,
        "who": who,
        "cause": cause or "",
    }
    tags |= planned.tables
    name = f"{as_of:%Y-%m-%d} {reason}"
    run_id = tracking.start_or_find_run(
        spec.experiment, key, name, tags, about=ABOUT_EXPERIMENT
    )
    with tracking.on_record(run_id):
        tracking.log_text(run_id, spec.model_dump_json(), SPEC)
        validate(settings, run_id, used_datasets(spec, service))
    return run_id


def nothing_new(settings: Settings, spec: ModelSpec, as_of: datetime) -> str | None:
    """Return why a run at `as_of` would learn the same as a finished run; None if it would not.

    Raises:
        TrainingError: There is nothing to learn from.
        RegistryError, DataError: A store that it needs does not answer.

    """
    service = service_of(settings, spec)
    planned = planned_run(settings, spec, service, as_of)
    if not _finished_runs(Tracking(settings), spec, planned.fingerprint):
        return None
    label = label_source(settings, spec).label
    matures = next_matures(planned.plan.test[-1], label, spec.snapshots)
    news = f"the next rows mature at {matures:%Y-%m-%d %H:%M} UTC"
    if matures <= as_of:
        news = f"rows that matured at {matures:%Y-%m-%d %H:%M} UTC wait for an ingest"
    return f"nothing new to learn: {news}"


def moment_of(run: Run) -> datetime:
    """Return the `as_of` of a training; it answers what was decided up to then."""
    as_of = run.tags.get("as_of")
    return datetime.fromisoformat(as_of) if as_of else BEGINNING


def fail_run(settings: Settings, spec: ModelSpec, key: str) -> None:
    """Mark the run of `key` as failed if it still goes on: it answers its cause no more."""
    tracking = Tracking(settings)
    outcome = f"a task was ended from outside: see the logs of {key}"
    for run in tracking.runs(spec.experiment, tag_equals(KEY_TAG, key)):
        if run.status == "RUNNING":
            tracking.end(run.run_id, outcome, "FAILED")


def _is_answered(
    tracking: Tracking, spec: ModelSpec, cause: str, key: str, as_of: datetime
) -> bool:
    """Return whether another run of a cause has finished, or may still do so."""
    for run in tracking.runs(spec.experiment, tag_equals("cause", cause)):
        is_alive = as_of - moment_of(run) <= LONGEST_RUN
        may_answer = run.status == "FINISHED" or (run.status == "RUNNING" and is_alive)
        if run.key != key and may_answer:
            return True
    return False


def _finished_runs(tracking: Tracking, spec: ModelSpec, fingerprint: str) -> list[Run]:
    """Return the finished runs with this fingerprint: they learnt the same."""
    is_same = tag_equals(FINGERPRINT, fingerprint)
    return tracking.runs(spec.experiment, f"{is_same} AND status = 'FINISHED'")

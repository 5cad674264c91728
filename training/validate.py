"""Stage 1: is there something to learn from, and something new?"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from feature_repo.datasets import load_dataset
from feature_repo.features import open_raw, raw_table
from feature_repo.store import FeatureStore
from feature_repo.validation import validate as check_rows
from mlflow_server.tracking import Tracking
from stack.errors import BatchRejectedError, SettingsError, TrainingError
from training.artifacts import SPEC
from training.lineage import code_tags, fingerprint, spec_hash, spec_text, table_tags
from training.snapshots import Plan, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_repo.definition import Dataset
    from feature_repo.validation import Validation
    from mlflow_server.tracking import Run
    from stack.settings import Settings
    from stack.spec import ModelSpec

log = logging.getLogger(__name__)
FINGERPRINT = "gyre.fingerprint"
RUN_NAME_LIMIT = 250
"""Of MLflow's table; SQLite does not hold to it, Postgres does."""
LONGEST = timedelta(hours=12)
"""A run that goes on for longer has died: all tries of its tasks (dags/train.py) take less."""
NOTHING_NEW = "nothing new to learn: no snapshot has matured, and spec, code and definitions stand"


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
    """Validate what a run at `as_of` would learn from, and start its MLflow run.

    key: names the run for ever: the same key gives the same run, so a stage can be repeated.
    cause: names what the run answers, such as a drift; one run answers one cause.
    Returns the MLflow run id, or None when there is nothing to do: another run answers the cause,
    or no snapshot has matured since an earlier run and neither spec, code nor definitions changed.

    Raises:
        SettingsError, DataError, TrainingError: what is missing or wrong.

    """
    dataset = load_dataset(spec.dataset)
    store, tracking = FeatureStore(settings), Tracking(settings)
    others = [run for run in tracking.runs(spec.experiment) if run.key != key]
    if cause and _answered(others, cause, as_of):
        return None
    if problems := mismatches(spec, dataset, store):
        raise SettingsError("\n".join(problems))
    table = raw_table(settings, dataset)
    version = table.version
    if spec.search:
        from training.search import check_spaces

        check_spaces(spec)
    newest = plan_run(settings, spec, dataset, as_of, version).test
    definition = store.definition_hash(spec.feature_service)
    mark = fingerprint(spec, newest, definition)
    if not force and _seen(others, mark):
        return None
    tags = {
        FINGERPRINT: mark,
        "as_of": as_of.isoformat(),
        "reason": reason,
        "who": who,
        "cause": cause or "",
        **table_tags(table, version, dataset),
        "feature_service": spec.feature_service,
        "definition_sha256": definition,
        "spec_sha256": spec_hash(spec),
        "seed": str(spec.seed),
        **code_tags(spec),
    }
    name = f"{as_of:%Y-%m-%d} {reason}"[:RUN_NAME_LIMIT]
    run_id = tracking.start_or_find_run(spec.experiment, key, name, tags)
    with tracking.on_record(run_id):
        tracking.log_text(run_id, spec_text(spec), SPEC)
        raw = open_raw(table, version, as_of)
        rows = raw.select(dataset.schema.names).to_pyarrow()
        checked = check_rows(dataset, rows, as_of)
        tracking.log_json(run_id, checked.report, "validation.json")
        if broken := _broken(checked):
            bad = rows.select(dataset.key).take([*checked.bad_rows(every=True)][:1]).to_pylist()
            raise BatchRejectedError(
                f"{dataset.name}: the table broke its rules: {broken}. Deliver the rows of the "
                f"same keys (such as {bad}) again, corrected, at the source, then: gyre ingest "
                f"{dataset.name} --full; or change the rule in "
                f"feature_repo/expectations/{dataset.name}.json"
            )
    return run_id


def learnable(settings: Settings, spec: ModelSpec, as_of: datetime) -> bool:
    """Whether a run at `as_of` would see anything that no finished run has seen."""
    definition = FeatureStore(settings).definition_hash(spec.feature_service)
    mark = fingerprint(spec, newest_snapshot(settings, spec, as_of), definition)
    return not _seen(Tracking(settings).runs(spec.experiment), mark)


def answered(
    settings: Settings, spec: ModelSpec, cause: str, decided: Sequence[datetime], as_of: datetime
) -> bool:
    """Whether a retraining of `cause` has finished, or is on its way at `as_of`.

    decided: when retrainings of it were. One that no run came of is on its way, for a time.
    """
    runs = Tracking(settings).runs(spec.experiment)
    begun = {run.tags["as_of"] for run in runs if run.tags.get("cause") == cause}
    coming = (at for at in decided if at.isoformat() not in begun and as_of - at <= LONGEST)
    return any(coming) or _answered(runs, cause, as_of)


def fail_run(settings: Settings, spec: ModelSpec, key: str) -> None:
    """End the run of `key`, should it still go on, as failed: it answers its cause no more."""
    tracking = Tracking(settings)
    for run in tracking.runs(spec.experiment):
        if run.key == key and run.status == "RUNNING":
            tracking.fail(run.run_id, f"a task was ended from outside: see the logs of {key}")


def newest_snapshot(settings: Settings, spec: ModelSpec, as_of: datetime) -> datetime:
    """The newest snapshot whose labels are known at `as_of`."""
    dataset = load_dataset(spec.dataset)
    version = raw_table(settings, dataset).version
    return plan_run(settings, spec, dataset, as_of, version).test


def _seen(runs: Sequence[Run], mark: str) -> bool:
    for run in runs:
        if run.status == "FINISHED" and run.tags.get(FINGERPRINT) == mark:
            log.info("run %s saw the same", run.run_id)
            return True
    return False


def _answered(runs: Sequence[Run], cause: str, as_of: datetime) -> bool:
    for run in runs:
        if run.tags.get("cause") == cause and (run.status == "FINISHED" or _goes_on(run, as_of)):
            log.info("run %s answers the same cause: %s", run.run_id, cause)
            return True
    return False


def _goes_on(run: Run, as_of: datetime) -> bool:
    began = datetime.fromisoformat(run.tags["as_of"])
    return run.status == "RUNNING" and as_of - began <= LONGEST


def plan_run(
    settings: Settings, spec: ModelSpec, dataset: Dataset, as_of: datetime, version: int
) -> Plan:
    """Plan the snapshots that raw version `version` allows at `as_of`."""
    if version < 0:
        raise TrainingError(f"{dataset.name}: no rows yet; run: gyre ingest {dataset.name}")
    raw = open_raw(raw_table(settings, dataset), version, as_of)
    first = raw[dataset.event_time].min().to_pyarrow().as_py()
    if first is None:
        raise TrainingError(f"{dataset.name}: no row was known as of {as_of:%Y-%m-%d}")
    label = dataset.labels[spec.label]
    return plan(first, as_of, label.horizon, label.lateness, spec.snapshots.train)


def mismatches(spec: ModelSpec, dataset: Dataset, store: FeatureStore) -> list[str]:
    """One line for each key of the spec that asks for what dataset or Feast do not have."""
    found, given = list[str](), store.feature_types(spec.feature_service)
    if spec.label not in dataset.labels:
        found.append(f"label: {spec.label!r} is not of {dataset.name}: {', '.join(dataset.labels)}")
    for name, kind in spec.features.items():
        if name not in given:
            known = ", ".join(given)
            expected = f"expected one of {spec.feature_service}: {known}"
            found.append(f"features.{name}: {expected}; found {name}")
        elif given[name] != kind:
            found.append(f"features.{name}: expected {given[name]}, found {kind}")
    if (keys := store.key_types(spec.feature_service)) != spec.entity_key:
        found.append(f"entity_key: expected {keys}, found {spec.entity_key}")
    return [f"{spec.name}.toml: {line}" for line in found]


def _broken(checked: Validation) -> str:
    for warning in checked.warnings:
        log.warning(warning.message)
    if not checked.rejections and not checked.bad_rows():
        return ""
    return "; ".join(f.message for f in checked.findings if f.severity != "warning")

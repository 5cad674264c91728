"""A monitoring run: everything that its checks look at, and the past of the version."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from core.errors import DataError, GyreError
from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from core.user_code import in_one_line
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.rules import last_applied, ways_back
from mlflow_server.roles import PRODUCTION, RoleAssignment
from monitoring.decisions.store import DecisionRow, newest_decisions
from monitoring.log.outcomes import Outcomes, backfilled_outcomes, online_outcomes
from monitoring.log.tables import KnownOutcomes, join_outcomes
from monitoring.log.window import Window, read_window
from monitoring.measurements.labels import label_change
from monitoring.measurements.performance import Judged, measure
from monitoring.measurements.segments import segments_of_outcomes
from monitoring.serving_status import ServingCounts, serving_counts
from training.evaluation.reference import Reference, load_reference, spec_of_version

SERVING_COUNTS = TypeAdapter(dict[str, ServingCounts])
"""Counts of serving by replica, in the row of a decision."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """The past of a monitoring run.

    Attributes:
        promotion: The ledger's row that put the version into production.
        previous: The version to go back to.
        training_ids: Ids of the trainings that made the registered versions.
        decisions: Decisions on the version since its promotion, oldest first.
        serving: Counts of serving at the last run, by replica; None if they are unknown.
        error: Why decisions cannot be read; there are none then.

    """

    promotion: LedgerRow | None
    previous: str | None
    training_ids: Collection[str]
    decisions: Sequence[DecisionRow]
    serving: dict[str, ServingCounts] | None
    error: DataError | None


@dataclass(frozen=True)
class MonitoringRun:
    """Everything that the checks of a run look at, as of a moment.

    Attributes:
        settings: Settings of the installation.
        spec: Spec of the model by which the version was trained.
        newest_spec: Spec of the model as it is now, for the next training.
        model: The model as it is registered now.
        version: The version in production.
        as_of: Moment of the run, aware UTC.
        past: Ledger and decisions before the run.
        window: The last prediction of each entity in 24 hours.
        outcomes: Outcomes that are known from feedback.
        serving: Counts of each replica of serving; None where one does not answer.
        folder: Folder for Evidently's reports.
        judged: Rows whose outcome is known, backfilled and online, with the metrics on them.
        unmeasured: Why backfilled or online outcomes could not be read or measured.

    """

    settings: Settings
    spec: ModelSpec
    newest_spec: ModelSpec
    model: RoleAssignment
    version: str
    as_of: datetime
    past: Past
    window: Window
    outcomes: KnownOutcomes
    serving: dict[str, ServingCounts] | None
    folder: Path
    judged: Sequence[Judged]
    unmeasured: Sequence[str]


def prepare_run(
    settings: Settings,
    newest_spec: ModelSpec,
    version: str,
    as_of: datetime,
    folder: Path,
) -> tuple[MonitoringRun, Reference | str]:
    """Read everything that the checks need.

    Args:
        settings: Settings of the installation.
        newest_spec: Spec of the model as it is now.
        version: The version in production.
        as_of: Moment of the run.
        folder: Folder for Evidently's reports.

    Returns:
        The run, and the version's reference or why there is none.

    Raises:
        RegistryError, DataError: A store does not answer.

    """
    spec = spec_of_version(settings, newest_spec, version)
    model = Registry(settings).assignment(spec.name)
    features = spec.features
    reference = _read_reference(settings, spec.name, version)
    outcomes = join_outcomes(settings, spec, as_of)
    judged: list[Judged] = []
    unmeasured: list[str] = []
    if isinstance(reference, Reference):
        features = reference.features
        with _collecting(unmeasured):
            backfilled = backfilled_outcomes(
                settings, spec, version, reference.snapshot, as_of
            )
            judged += _judge(spec, backfilled, reference)
        with _collecting(unmeasured):
            threshold = reference.threshold
            online = online_outcomes(
                settings, spec, model, version, outcomes.known, threshold, as_of
            )
            judged += _judge(spec, online, reference)
    run = MonitoringRun(
        settings=settings,
        spec=spec,
        newest_spec=newest_spec,
        model=model,
        version=version,
        as_of=as_of,
        past=load_past(settings, model, version, as_of),
        window=read_window(settings, model, version, features, as_of, spec.classes),
        outcomes=outcomes,
        serving=serving_counts(settings),
        folder=folder,
        judged=judged,
        unmeasured=unmeasured,
    )
    return run, reference


def _read_reference(settings: Settings, name: str, version: str) -> Reference | str:
    """Return the reference of a version, or why there is none."""
    try:
        return load_reference(settings, Registry(settings).version(name, version))
    except GyreError as exc:
        return str(exc)


@contextmanager
def _collecting(errors: list[str]) -> Iterator[None]:
    """Collect an error of the block: the other checks may still find that a version does harm."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001  (whatever a team's model raises)
        errors.append(in_one_line(exc))


def _judge(
    spec: ModelSpec, outcomes: Outcomes | None, reference: Reference
) -> Iterator[Judged]:
    """Measure outcomes, if there are any."""
    if outcomes:
        metrics = [*label_change(spec, outcomes, reference)]
        if outcomes.differ:
            metrics += measure(spec, outcomes, reference.evaluated)
            metrics += segments_of_outcomes(spec, outcomes)
        yield Judged(outcomes, metrics)


def load_past(
    settings: Settings, model: RoleAssignment, version: str, as_of: datetime
) -> Past:
    """Read ledger, registered versions and decisions.

    Args:
        settings: Settings of the installation.
        model: The model.
        version: The version in production.
        as_of: Moment of the run.

    Raises:
        RegistryError: MLflow or the ledger does not answer.

    """
    with Ledger(settings) as ledger:
        rows = ledger.rows(model.name, model.created)
    versions = Registry(settings).versions(model.name)
    decisions: list[DecisionRow] = []
    error: DataError | None = None
    try:
        decisions = newest_decisions(settings, model.name, created=model.created)
    except DataError as exc:
        error = exc
    earlier = [row for row in decisions if row.as_of < as_of]
    counts = earlier[-1].serving if earlier else None
    promotion = last_applied(rows, PRODUCTION)
    start = promotion.time if promotion else BEGINNING
    return Past(
        promotion=promotion,
        previous=previous_version(rows, {row.version for row in versions}),
        training_ids={row.run_id for row in versions},
        decisions=[
            row for row in earlier if row.version == version and row.as_of >= start
        ],
        serving=None if counts is None else SERVING_COUNTS.validate_json(counts),
        error=error,
    )


def previous_version(
    rows: Sequence[LedgerRow], registered: Collection[str]
) -> str | None:
    """Return the newest registered version that was in production before today's version.

    A version that a monitoring run rolled back is left out.
    """
    harmful = {
        row.from_version
        for row in rows
        if row.role == PRODUCTION
        and row.applied_at
        and row.action == "automatic rollback"
    }
    for version in ways_back(rows):
        if version in registered and version not in harmful:
            return version
    return None

"""One monitoring run: everything that its checks look at, read once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from core.errors import DataError, GyreError
from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from core.user_code import in_one_line
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Run, Tracking
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.rules import last_applied, ways_back
from mlflow_server.roles import PRODUCTION, RoleAssignment
from mlflow_server.tags import OF_TRAININGS
from monitoring.decisions.store import DecisionRow, newest_decisions
from monitoring.log.outcomes import Outcomes, backfilled_outcomes, online_outcomes
from monitoring.log.tables import KnownOutcomes, join_outcomes
from monitoring.log.window import Window, window
from monitoring.measurements.labels import label_change
from monitoring.measurements.performance import Judged, measure
from monitoring.measurements.segments import segments_of_outcomes
from monitoring.serving_status import ServingCounts, serving_counts
from training.evaluation.reference import Reference, load_reference, spec_of_version
from training.runs import moment_of

COUNTS = TypeAdapter(dict[str, ServingCounts])
"""What each replica had counted, in a decision's row."""
WHO = "monitor"
"""Who, in the ledger."""


@dataclass(frozen=True)
class Past:
    """What was before a monitoring run.

    Attributes:
        version: The version in production.
        as_of: The moment of the run.
        promotion: The ledger's row that put the version into production.
        previous: The version to go back to.
        decisions: The newest of the model before `as_of`, oldest first.
        last_retraining: When a retraining was last decided that made a version, or still may.
        problem: Why decisions cannot be read; there are none then.

    """

    version: str
    as_of: datetime
    promotion: LedgerRow | None
    previous: str | None
    decisions: list[DecisionRow]
    last_retraining: datetime | None
    problem: DataError | None = None

    @property
    def own(self) -> list[DecisionRow]:
        """Decisions on this version since its promotion, oldest first."""
        start = self.promotion.time if self.promotion else BEGINNING
        return [
            row
            for row in self.decisions
            if row.version == self.version and row.as_of >= start
        ]

    @property
    def serving(self) -> dict[str, ServingCounts] | None:
        """What serving had counted at the last run, by replica; None if that is unknown."""
        if not self.decisions or self.decisions[-1].serving is None:
            return None
        return COUNTS.validate_json(self.decisions[-1].serving)


@dataclass(frozen=True)
class MonitoringRun:
    """What is known of the version in production as of a moment.

    Attributes:
        settings: Of the installation.
        spec: Of the model, as the version was trained.
        newest_spec: As it is now, for the next training.
        model: The model as it is registered now.
        version: The version in production.
        as_of: The moment, aware UTC.
        past: Ledger and decisions before it.
        window: The last prediction of each entity in 24 hours.
        outcomes: What feedback says.
        serving: What each replica of serving has counted; None where one does not answer.
        folder: Where Evidently's reports go.
        judged: Predictions whose outcome is known, backfilled and online, and metrics on them.
        unmeasured: Why one of these could not be read.

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


def prepare(
    settings: Settings,
    newest_spec: ModelSpec,
    version: str,
    as_of: datetime,
    folder: Path,
) -> tuple[MonitoringRun, Reference | str]:
    """Read what the checks need.

    Returns:
        The run, and the version's reference or why there is none.

    Raises:
        RegistryError, DataError: A store that it needs does not answer.

    """
    spec = spec_of_version(settings, newest_spec, version)
    registry = Registry(settings)
    model = registry.assignment(spec.name)
    reference: Reference | str
    try:
        reference = load_reference(settings, registry.version(spec.name, version))
        features = reference.features
    except GyreError as exc:
        reference = str(exc)
        features = spec.features
    outcomes = join_outcomes(settings, spec, as_of)
    judged: list[Judged] = []
    unmeasured: list[str] = []
    if isinstance(reference, Reference):
        readers = [
            partial(backfilled_outcomes, evaluated_on=reference.snapshot),
            partial(
                online_outcomes,
                created=model.created,
                feedback=outcomes.known,
                threshold=reference.threshold,
            ),
        ]
        for read in readers:
            # What cannot be read must not keep a harmful version.
            try:
                rows = read(settings, spec, version, as_of=as_of)
                if rows:
                    judged.append(_judge(spec, rows, reference))
            except Exception as exc:  # noqa: BLE001
                unmeasured.append(in_one_line(exc))
    run = MonitoringRun(
        settings=settings,
        spec=spec,
        newest_spec=newest_spec,
        model=model,
        version=version,
        as_of=as_of,
        past=load_past(settings, newest_spec, model, version, as_of),
        window=window(settings, model, version, features, as_of, spec.classes),
        outcomes=outcomes,
        serving=serving_counts(settings),
        folder=folder,
        judged=judged,
        unmeasured=unmeasured,
    )
    return run, reference


def _judge(spec: ModelSpec, outcomes: Outcomes, reference: Reference) -> Judged:
    metrics = [*measure(spec, outcomes, reference.evaluated)]
    metrics += label_change(spec, outcomes, reference)
    metrics += segments_of_outcomes(spec, outcomes)
    return Judged(outcomes, metrics)


def load_past(
    settings: Settings,
    spec: ModelSpec,
    model: RoleAssignment,
    version: str,
    as_of: datetime,
) -> Past:
    """Read what is known by now.

    Raises:
        RegistryError: MLflow or the ledger does not answer.

    """
    with Ledger(settings) as ledger:
        rows = ledger.rows(model.name, model.created)
    versions = Registry(settings).versions(model.name)
    trainings = Tracking(settings).runs(spec.experiment, OF_TRAININGS)
    decisions: list[DecisionRow] = []
    retrainings: list[DecisionRow] = []
    problem: DataError | None = None
    try:
        decisions = newest_decisions(settings, model.name, created=model.created)
        retrainings = newest_decisions(
            settings, model.name, action="retrain", created=model.created
        )
    except DataError as exc:
        problem = exc
    earlier = [row for row in retrainings if row.as_of != as_of]
    return Past(
        version=version,
        as_of=as_of,
        promotion=last_applied(rows, PRODUCTION),
        previous=previous_version(rows, {row.version for row in versions}),
        decisions=[row for row in decisions if row.as_of < as_of],
        last_retraining=last_retraining(
            earlier, trainings, {row.run_id for row in versions}
        ),
        problem=problem,
    )


def last_retraining(
    decisions: Sequence[DecisionRow],
    trainings: Sequence[Run],
    run_ids: Collection[str],
) -> datetime | None:
    """Return when a retraining was last decided that made a version, or still may.

    A training answers what was decided up to its moment. Where it finished without a version,
    nothing is decided before further rows mature.

    Args:
        decisions: To retrain, oldest first.
        trainings: All of the model.
        run_ids: Trainings of the registered versions.

    """
    for decision in reversed(decisions):
        answers = [run for run in trainings if moment_of(run) >= decision.as_of]
        answer = min(answers, key=moment_of, default=None)
        if answer is None or answer.status != "FINISHED" or answer.run_id in run_ids:
            return decision.as_of
    return None


def previous_version(
    rows: Sequence[LedgerRow], registered: Collection[str]
) -> str | None:
    """Return the registered version that was in production before that of today.

    A version that a monitor rolled back is left out.
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

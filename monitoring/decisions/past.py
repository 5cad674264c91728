"""What was before a monitoring run: its decisions, and the ledger's rows of its model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import TypeAdapter

from core.errors import DataError
from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Run, Tracking
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.rules import last_applied, ways_back
from mlflow_server.roles import PRODUCTION, RoleAssignment
from mlflow_server.tags import OF_TRAININGS
from monitoring.decisions.store import DecisionRow, newest_decisions
from monitoring.serving_status import ServingCounts
from training.runs import moment_of

COUNTS = TypeAdapter(dict[str, ServingCounts])
"""What each replica had counted, in a decision's row."""


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

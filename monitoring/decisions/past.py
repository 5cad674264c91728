"""The past of a monitoring run: earlier decisions, and the roles that versions had."""

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

SERVING_COUNTS = TypeAdapter(dict[str, ServingCounts])
"""Counts of serving by replica, in the row of a decision."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """The past of a monitoring run.

    Attributes:
        version: The version in production.
        as_of: Moment of the run.
        promotion: The ledger's row that put the version into production.
        previous: The version to go back to.
        training_ids: Ids of the trainings that made the registered versions.
        decisions: The newest decisions on the model before `as_of`, oldest first.
        error: Why decisions cannot be read; there are none then.

    """

    version: str
    as_of: datetime
    promotion: LedgerRow | None
    previous: str | None
    training_ids: Collection[str]
    decisions: Sequence[DecisionRow]
    error: DataError | None = None

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
        """Counts of serving at the last run, by replica; None if they are unknown."""
        if not self.decisions or self.decisions[-1].serving is None:
            return None
        return SERVING_COUNTS.validate_json(self.decisions[-1].serving)


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
    return Past(
        version=version,
        as_of=as_of,
        promotion=last_applied(rows, PRODUCTION),
        previous=previous_version(rows, {row.version for row in versions}),
        training_ids={row.run_id for row in versions},
        decisions=[row for row in decisions if row.as_of < as_of],
        error=error,
    )


def read_retrainings(
    settings: Settings, spec: ModelSpec, created: int
) -> tuple[list[DecisionRow], list[Run]]:
    """Read the decisions to retrain a model, oldest first, and all its trainings.

    Raises:
        RegistryError, DataError: A store does not answer.

    """
    decisions = newest_decisions(settings, spec.name, action="retrain", created=created)
    return decisions, Tracking(settings).runs(spec.experiment, OF_TRAININGS)


def last_retraining(
    decisions: Sequence[DecisionRow],
    trainings: Sequence[Run],
    training_ids: Collection[str],
) -> datetime | None:
    """Return when a retraining was last decided that made a version, or still may.

    A training answers the decisions up to its moment. A decision whose training finished without
    a version does not count: nothing is decided again before further rows mature.

    Args:
        decisions: Decisions to retrain, oldest first.
        trainings: All trainings of the model.
        training_ids: Ids of the trainings that made the registered versions.

    """
    for decision in reversed(decisions):
        answers = [run for run in trainings if moment_of(run) >= decision.as_of]
        answer = min(answers, key=moment_of, default=None)
        if answer is None or answer.status != "FINISHED":
            return decision.as_of
        if answer.run_id in training_ids:
            return decision.as_of
    return None


def previous_version(
    rows: Sequence[LedgerRow], registered: Collection[str]
) -> str | None:
    """Return the newest registered version that was in production before that of today.

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

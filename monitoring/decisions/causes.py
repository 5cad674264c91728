"""Causes of a training. A run reads them when it starts: events may be merged or never come."""

from dataclasses import dataclass
from datetime import datetime

from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.rules import last_applied
from mlflow_server.roles import PRODUCTION
from monitoring.decisions.past import read_retrainings
from monitoring.decisions.store import DecisionRow
from training.runs import moment_of, nothing_new


@dataclass(frozen=True)
class TrainingCause:
    """The cause of a training.

    Attributes:
        as_of: Moment of the training.
        reason: Reasons of all decisions that the training answers.
        name: Name of the newest of these decisions: a training with this name answers it.

    """

    as_of: datetime
    reason: str | None = None
    name: str | None = None


def training_cause(
    settings: Settings, spec: ModelSpec, start: datetime, wanted_moment: datetime | None
) -> TrainingCause:
    """Return the cause of a training that started at `start`.

    The moment of the training is `wanted_moment`, else that of the newest decision without an
    answer, else `start`. Unless somebody asked for it, it is never before the newest promotion: an
    older training does not promote.

    Args:
        settings: Settings of the installation.
        spec: Spec of the model.
        start: Start of the run.
        wanted_moment: The moment that somebody asked for.

    """
    decisions = open_decisions(settings, spec, wanted_moment or start)
    if not decisions:
        return TrainingCause(
            wanted_moment or moment_since_promotion(settings, spec.name, start)
        )
    newest = decisions[-1]
    moment = wanted_moment or moment_since_promotion(settings, spec.name, newest.as_of)
    reason = "; ".join(f"{row.cause}: {row.reason}" for row in decisions)
    return TrainingCause(
        moment, reason, f"{newest.cause}, decided {newest.as_of:%Y-%m-%d %H:%M:%S}"
    )


def open_decisions(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> list[DecisionRow]:
    """Return the decisions to retrain up to `as_of` that no training has answered, oldest first.

    A training answers the decisions up to its own moment, however it ends; the cooldown decides
    when a failed training is repeated. If there is nothing new to learn, no decision is returned:
    another training has learnt everything.
    """
    created = Registry(settings).assignment(spec.name).created
    decisions, trainings = read_retrainings(settings, spec, created)
    trained_until = max(map(moment_of, trainings), default=BEGINNING)
    causes = [row for row in decisions if trained_until < row.as_of <= as_of]
    if causes and nothing_new(settings, spec, as_of):
        return []
    return causes


def moment_since_promotion(settings: Settings, model: str, start: datetime) -> datetime:
    """Return `start`, or the moment of the newest promotion if that is later, by another clock."""
    created = Registry(settings).assignment(model).created
    with Ledger(settings) as ledger:
        row = last_applied(ledger.rows(model, created), PRODUCTION)
    return max(start, row.time) if row else start

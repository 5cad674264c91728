"""Causes of a training: decisions to retrain that no training has answered.

A run reads its causes when it starts, as events may be merged or never come.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Run, Tracking
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.rules import last_applied
from mlflow_server.roles import PRODUCTION
from mlflow_server.tags import OF_TRAININGS
from monitoring.decisions.store import DecisionRow, newest_decisions
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

    The moment of the training is `wanted_moment`, else the moment of the newest decision without
    an answer, else `start`. Unless somebody asked for it, it is never before the newest promotion: an
    older training does not promote.

    Args:
        settings: Settings of the installation.
        spec: Spec of the model.
        start: Start of the run.
        wanted_moment: The moment that somebody asked for.

    """
    decisions = open_decisions(settings, spec, wanted_moment or start)
    moment = decisions[-1].as_of if decisions else start
    moment = wanted_moment or moment_since_promotion(settings, spec.name, moment)
    if not decisions:
        return TrainingCause(moment)
    newest = decisions[-1]
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
        if (
            answer is None
            or answer.status != "FINISHED"
            or answer.run_id in training_ids
        ):
            return decision.as_of
    return None


def moment_since_promotion(settings: Settings, model: str, start: datetime) -> datetime:
    """Return `start`, or the moment of the newest promotion if that is later, by another clock."""
    created = Registry(settings).assignment(model).created
    with Ledger(settings) as ledger:
        row = last_applied(ledger.rows(model, created), PRODUCTION)
    return max(start, row.time) if row else start

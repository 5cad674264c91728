"""`gyre backtest`: policies of retraining on the real history, by the functions of the loop itself.

Nothing of the stack is asked or changed: the history lies in a folder of its own meanwhile.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from feature_repo.datasets import load_dataset
from feature_repo.history import whole_history
from monitoring.backtest_history import History
from monitoring.backtest_policies import (
    POLICIES,
    Alarms,
    Step,
    alarms,
    decayed,
    first_trigger,
    serving,
    walk,
)
from stack.errors import MonitoringError
from training.metrics import Interval, best_constant, interval, resampled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.metrics import Scores


log = logging.getLogger(__name__)
FEWEST_MONTHS = 2
TOLD = {"classification": ("log_loss", "auc", "cost"), "regression": ("rmse", "mae", "r2")}


@dataclass(frozen=True)
class Made:
    """A model: what it was fitted on, by what, from where it says 1, and the seconds it took."""

    train: tuple[datetime, ...]
    estimator: str
    threshold: float | None
    seconds: float


@dataclass(frozen=True)
class Result:
    """One policy. Metrics are means over the months that are scored.

    refused: trainings whose model did not pass the gates. seconds: of all its trainings.
    minus_frozen: of the mean loss, with its 95 % interval.
    saved: cost per 1,000 rows below that of the cheaper of acting on nobody and on everybody.
    trigger_days: from the first model's decay to the policy's first trigger.
    """

    policy: str
    trainings: int
    refused: int
    seconds: float
    metrics: dict[str, float]
    minus_frozen: Interval
    saved: float | None
    trigger_days: float | None
    alarms: Alarms
    serves: dict[datetime, datetime]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Backtest:
    """Policies from `start` to `end`. A model is named by the snapshot that it is evaluated on.

    rows: of each month the policies are scored on. constant: what the best one reaches, by month.
    matrix: model → month → metrics. behind: month → by how much the loss of the first model is
    above that of one trained then; decay: the first in which it surely is.
    """

    model: str
    loss: str
    first_event: datetime
    start: datetime
    end: datetime
    seconds: float
    rows: dict[datetime, int]
    constant: dict[datetime, dict[str, float]]
    models: dict[datetime, Made]
    matrix: dict[datetime, dict[datetime, dict[str, float]]]
    behind: dict[datetime, Interval]
    decay: datetime | None
    results: tuple[Result, ...]


def backtest(
    settings: Settings, spec: ModelSpec, as_of: datetime, since: datetime | None = None
) -> Backtest:
    """Walk every policy, from `since` on, through the history that the source holds at `as_of`.

    Of the shipped orders that is all of them, those that lie ahead included.

    Raises:
        TrainingError: the history is too short to train on, or says nothing.
        MonitoringError: it is too short to judge what was trained.
        DataError: the source cannot be read.

    """
    began, dataset = time.perf_counter(), load_dataset(spec.dataset)
    log.info("history of %s", dataset.name)
    with whole_history(settings, dataset, as_of) as (beside, end):
        return _backtest(History(beside, spec, dataset, end, since), began)


def _backtest(history: History, began: float) -> Backtest:
    spec, start, end = history.spec, history.start, history.end
    months = [month for month in history.months if month >= start]
    if len(months) < FEWEST_MONTHS:
        raise MonitoringError(
            f"{spec.name}: history too short: the first training is as of {start:%Y-%m-%d}, and "
            f"labels are known up to {end - history.wait:%Y-%m-%d}; expected {FEWEST_MONTHS} "
            f"month starts between"
        )
    cooldown = timedelta(hours=spec.retraining.cooldown_hours)
    walked = {}
    for policy in POLICIES:
        log.info("policy %s", policy.name)
        walked[policy.name] = walk(policy, history.weeks, history, cooldown)
    names = sorted({history.newest(week) for week in history.weeks})
    log.info("%d models on %d months", len(names), len(history.months))
    matrix = {n: {m: history.metrics(n, m) for m in history.months} for n in names}
    constant = {
        m: best_constant(history.labels(m), spec.threshold, spec.costs) for m in history.months
    }
    serves = {name: {m: serving(steps, m) for m in months} for name, steps in walked.items()}
    drawn = {m: _resampled(history, m, {each[m] for each in serves.values()}) for m in months}
    behind = {m: _behind(history, m, drawn[m]) for m in months}
    decay = decayed({m: gap.low for m, gap in behind.items()})
    losses = {n: {m: found[spec.loss] for m, found in row.items()} for n, row in matrix.items()}
    rows = {m: len(history.labels(m)) for m in months}

    def result(name: str, steps: tuple[Step, ...]) -> Result:
        mine, frozen = serves[name], serves[POLICIES[0].name]
        made = [step for step in steps if step.trained]
        trigger = first_trigger(steps)
        value = np.mean([losses[mine[m]][m] - losses[frozen[m]][m] for m in months])
        samples = np.mean([drawn[m][mine[m]] - drawn[m][frozen[m]] for m in months], axis=0)
        saves = [constant[m]["cost"] - matrix[mine[m]][m]["cost"] for m in months if spec.costs]
        return Result(
            policy=name,
            trainings=len(made),
            refused=sum(step.serves != step.trained for step in made),
            seconds=sum(history.model(step.trained).seconds for step in made if step.trained),
            metrics={
                each: float(np.mean([matrix[mine[m]][m][each] for m in months]))
                for each in TOLD[spec.task]
            },
            minus_frozen=interval(float(value), samples),
            saved=1000 * float(np.average(saves, weights=[*rows.values()])) if saves else None,
            trigger_days=(trigger - decay) / timedelta(days=1) if trigger and decay else None,
            alarms=alarms(steps, losses, history.wait),
            serves=mine,
            steps=steps,
        )

    made = ((name, history.model(name)) for name in names)
    return Backtest(
        model=spec.name, loss=spec.loss, first_event=history.first_event, start=start, end=end,
        seconds=time.perf_counter() - began, rows=rows, constant=constant,
        models={n: Made(m.plan.train, m.estimator, m.threshold, m.seconds) for n, m in made},
        matrix=matrix, behind=behind, decay=decay,
        results=tuple(result(name, steps) for name, steps in walked.items()),
    )  # fmt: skip


def _resampled(history: History, month: datetime, serve: set[datetime]) -> dict[datetime, Scores]:
    """Loss of each model that serves in `month`, and of one trained then, on equal resamples."""
    spec, names = history.spec, serve | {history.newest(month)}
    models = {f"{name}": history.scored(name, month) for name in names}
    drawn = resampled(history.labels(month), models, spec.costs, spec.seed)
    return {name: drawn[f"{name}"][spec.loss] for name in names}


def _behind(history: History, month: datetime, drawn: Mapping[datetime, Scores]) -> Interval:
    first, fresh, loss = history.newest(history.start), history.newest(month), history.spec.loss
    value = history.metrics(first, month)[loss] - history.metrics(fresh, month)[loss]
    return interval(value, drawn[first] - drawn[fresh])

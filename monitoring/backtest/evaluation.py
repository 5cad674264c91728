"""`gyre backtest`: policies of retraining on the real history, by the functions of the loop itself.

Nothing of the stack is asked or changed: the history lies in a temporary installation meanwhile.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from core.errors import MonitoringError
from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.datasets import load_dataset
from feature_repo.ingest import whole_history
from monitoring.backtest import policies
from monitoring.backtest.history import History
from training.metrics import (
    Interval,
    Scores,
    all_metrics,
    best_constant,
    interval,
    resampled,
)

log = logging.getLogger(__name__)
FROZEN, FRESH = "frozen", "fresh"
FEWEST_MONTHS = 2
SHOWN = ("log_loss", "auc", "cost", "rmse", "mae", "r2")
"""Metrics of the table, those that the task has."""
WIDTHS = (9, 7, 5, 3, 1)
"""Of the policies' lines in order: several often serve the same model, and lie on each other."""


@dataclass(frozen=True)
class Month:
    """A snapshot that policies are scored on.

    constant: the best constant's metrics. metrics: of the model that each policy served, by policy,
    and of one trained at that moment, `fresh`. behind: loss of the first model minus fresh's.
    """

    rows: int
    constant: dict[str, float]
    metrics: dict[str, dict[str, float]]
    behind: Interval


@dataclass(frozen=True)
class Result:
    """One policy. Metrics are means over the months.

    seconds: of CPU, of all its trainings. minus_frozen: of the mean loss. trigger_days: from the
    first model's decay to the policy's first trigger.
    """

    policy: str
    trainings: int
    seconds: float
    metrics: dict[str, float]
    minus_frozen: Interval
    trigger_days: float | None
    alarms: policies.Alarms
    steps: tuple[policies.Step, ...]


@dataclass(frozen=True)
class Backtest:
    """Policies from `start` to `end`. loss: a metric's name. models: how many were trained.

    decay: the first month in which the first model is surely worse than one trained that month.
    """

    model: str
    loss: str
    start: datetime
    end: datetime
    models: int
    months: dict[datetime, Month]
    decay: datetime | None
    results: tuple[Result, ...]

    @property
    def extent(self) -> str:
        rows = sum(month.rows for month in self.months.values())
        dates = f"{self.start:%Y-%m-%d} to {self.end:%Y-%m-%d}"
        return f"{dates}, {rows:,} outcomes of {len(self.months)} snapshots"


BACKTESTS = TypeAdapter(Backtest)


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
    dataset = load_dataset(spec.dataset)
    log.info("history of %s", dataset.name)
    with whole_history(settings, spec, as_of) as (beside, end):
        return evaluate(History(beside, spec, dataset, end, since))


def evaluate(history: History) -> Backtest:
    """Walk every policy; compare the models that served on the first of each month."""
    spec, start, end = history.spec, history.start, history.end
    dates = [month for month in history.known if month >= start]
    if len(dates) < FEWEST_MONTHS:
        raise MonitoringError(
            f"{spec.name}: history too short: the first training is as of {start:%Y-%m-%d}, and "
            f"labels of {len(dates)} later snapshots are known by {end:%Y-%m-%d}; expected "
            f"{FEWEST_MONTHS} or more"
        )
    cooldown = timedelta(hours=spec.monitoring.cooldown_hours)
    walks: dict[str, tuple[policies.Step, ...]] = {}
    for policy in policies.POLICIES:
        log.info("policy %s", policy)
        walks[policy] = policies.walk(policy, history.weeks, history, cooldown)
    months, losses = {}, []
    for date in dates:
        served = {
            policy: policies.serving(steps, date) for policy, steps in walks.items()
        }
        months[date], drawn = _month(history, date, served)
        losses.append(drawn)
    decay = next((date for date, month in months.items() if month.behind.low > 0), None)
    results = []
    for name, steps in walks.items():
        samples = np.mean([drawn[name] - drawn[FROZEN] for drawn in losses], axis=0)
        results.append(
            _result(history, name, steps, [*months.values()], decay, samples)
        )
    models = len({step.trained for steps in walks.values() for step in steps} - {None})
    return Backtest(
        spec.name, spec.loss, start, end, models, months, decay, tuple(results)
    )


def _month(
    history: History, date: datetime, served: Mapping[str, datetime]
) -> tuple[Month, dict[str, Scores]]:
    """Return also the loss of each policy's model in bootstrap resamples, the same of all."""
    spec, models = history.spec, {**served, FRESH: history.newest(date)}
    rows = {name: history.outcomes(model, date) for name, model in models.items()}
    y, scored = rows[FRESH].y, {name: each.said for name, each in rows.items()}
    metrics = {name: all_metrics(y, each, spec.costs) for name, each in scored.items()}
    drawn = resampled(y, scored, spec.costs, spec.seed)
    losses = {name: each[spec.loss] for name, each in drawn.items()}
    gap = metrics[FROZEN][spec.loss] - metrics[FRESH][spec.loss]
    behind = interval(gap, losses[FROZEN] - losses[FRESH])
    constant = best_constant(y, scored[FRESH], spec.costs)
    return Month(len(y), constant, metrics, behind), losses


def _result(
    history: History,
    policy: str,
    steps: Sequence[policies.Step],
    months: Sequence[Month],
    decay: datetime | None,
    samples: Scores,
) -> Result:
    """samples: of the mean loss minus that of `frozen`, float [B]."""
    spec = history.spec
    trigger = next((step.as_of for step in steps[1:] if step.action != "nothing"), None)
    trained = [step.trained for step in steps if step.trained]
    means, frozen = (
        _means([each.metrics[name] for each in months]) for name in (policy, FROZEN)
    )
    return Result(
        policy=policy,
        trainings=len(trained),
        seconds=sum(history.model(model).seconds for model in trained),
        metrics=means,
        minus_frozen=interval(means[spec.loss] - frozen[spec.loss], samples),
        trigger_days=(trigger - decay) / timedelta(days=1)
        if trigger and decay
        else None,
        alarms=policies.alarms(steps, history.known, history.loss),
        steps=tuple(steps),
    )


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        str(name): float(mean) for name, mean in pd.DataFrame([*metrics]).mean().items()
    }


def write(settings: Settings, report: Backtest) -> Path:
    """Write `backtest.json`, `.md` and `.png`; return their folder."""
    folder = settings.home / "backtest" / report.model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "backtest.json").write_bytes(BACKTESTS.dump_json(report, indent=1))
    (folder / "backtest.md").write_text(f"{table(report)}\n")
    figure(report).savefig(folder / "backtest.png", dpi=100)
    return folder


def summary(report: Backtest) -> str:
    """Say what was walked, then the table."""
    decay = "is in no month surely worse than one trained that month"
    if report.decay:
        decay = (
            f"is surely worse than one trained that month from {report.decay:%Y-%m-%d} on: "
            f"{_words(report.loss)} {_difference(report.months[report.decay].behind)}"
        )
    head = f"{report.model}: {report.extent}, {report.models} different models"
    return f"{head}\nthe first model, of {report.start:%Y-%m-%d}, {decay}\n\n{table(report)}"


def table(report: Backtest) -> str:
    """One line per policy, in Markdown; in the head what the best constant reaches."""
    constant = _means([month.constant for month in report.months.values()])
    names = [name for name in SHOWN if name in report.results[0].metrics]
    head = ["policy", "trainings", "seconds"]
    head += [f"{_words(name)} ({constant[name]:.3f})" for name in names]
    head += ["minus frozen (95 %)", "first trigger", "false alarms"]
    lines = [head, ["---"] * len(head)]
    for each in report.results:
        unknown = f", {each.alarms.unknown} unknown" if each.alarms.unknown else ""
        line = [each.policy, f"{each.trainings}", f"{each.seconds:.0f}"]
        line += [f"{each.metrics[name]:.4f}" for name in names]
        line += [_difference(each.minus_frozen)]
        line += [
            "never" if each.trigger_days is None else f"{each.trigger_days:+.0f} days"
        ]
        lines.append([*line, f"{each.alarms.false} of {each.alarms.raised}{unknown}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(report: Backtest) -> Figure:
    """Loss by month, and its mean against the cost of training."""
    made = Figure(figsize=(12, 4.5), layout="constrained")
    made.suptitle(f"{report.model}: retraining from {report.extent}")
    by_month, by_cost = made.subplots(1, 2)
    loss, months = report.loss, report.months.values()
    for result, width in zip(report.results, WIDTHS, strict=True):
        above = [
            each.metrics[result.policy][loss] - each.constant[loss] for each in months
        ]
        by_month.plot(above, linewidth=width, label=result.policy)
        gap = result.minus_frozen
        ends = [[gap.value - gap.low], [gap.high - gap.value]]
        label = f"{result.policy} ({result.trainings})"
        by_cost.errorbar(
            result.seconds, gap.value, ends, fmt="o", capsize=3, label=label
        )
    by_month.set_xticks(
        range(len(months)), [f"{month:%b %y}" for month in report.months]
    )
    by_month.set(title="by month", ylabel=f"{_words(loss)} minus best constant")
    by_cost.set(
        title="against training cost",
        xlabel="seconds of training (trainings in brackets)",
    )
    by_cost.set_ylabel(f"mean {_words(loss)} minus frozen, 95 %")
    for axes in (by_month, by_cost):
        axes.axhline(0, color="grey", linewidth=1)
        axes.legend(fontsize=9)
    return made


def _difference(gap: Interval) -> str:
    return f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"


def _words(metric: str) -> str:
    return metric.replace("_", " ")

"""Production against challenger by what came true: who did better, and is it sure?

An experiment is a stretch in which one challenger answered one percent beside one production
version. An entity counts once, by its first answer within it: a hash of the entity decides which
version gives that, so the two groups differ by nothing else. An interval holds for one reading.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from math import isfinite
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter
from scipy.stats import ttest_ind

from core.errors import MonitoringError
from core.settings import Settings
from core.spec import ModelSpec
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.registry import CHALLENGER, PRODUCTION
from mlflow_server.roles import last_applied
from monitoring.checks.performance import actuals
from monitoring.collect import (
    ANSWERS,
    collect,
    join_outcomes,
    logged_scores,
    predictions,
)
from training.metrics import Scored, losses

Conclusion = Literal["better", "worse", "not yet known"]
FEWEST = 100
"""Outcomes of each version below which nothing is concluded: means are not yet normal."""
LEVEL = 0.05
EVERYBODY = 100
UNITS = {
    "cost": "cost per entity",
    "log_loss": "log loss",
    "squared_error": "squared error",
}


@dataclass(frozen=True)
class Experiment:
    """ended: None while it goes on. percent: of the entities, that the challenger answers."""

    production: str
    challenger: str
    percent: int
    began: datetime
    ended: datetime | None


@dataclass(frozen=True)
class Variant:
    """metrics: those that are defined here; `rate` is the mean of what came true."""

    version: str
    outcomes: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Effect:
    """Challenger minus production, and its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """effects: by figure, of which `figure` decides; of all but `rate` less is better."""

    production: Variant
    challenger: Variant
    figure: str
    effects: dict[str, Effect]
    conclusion: Conclusion

    @property
    def sentence(self) -> str:
        ours, theirs = self.challenger, self.production
        versions = f"{self.conclusion}: version {ours.version} against version {theirs.version}"
        counts = f"{ours.outcomes:,} and {theirs.outcomes:,} outcomes"
        if min(ours.outcomes, theirs.outcomes) < FEWEST:
            counts = f"{counts}; {FEWEST} of each are the least"
        if self.figure not in self.effects:
            return f"{versions}: {counts}"
        decisive = self.effects[self.figure]
        shift = decisive.difference
        return (
            f"{versions}: {UNITS[self.figure]} {abs(shift):.3g} "
            f"{'lower' if shift < 0 else 'higher'} "
            f"(95 %: {decisive.low:+.3g} to {decisive.high:+.3g}), {counts}"
        )


@dataclass(frozen=True)
class ExperimentReport:
    """An experiment as of `as_of`. left_out: answers and entities that do not count, by why."""

    model: str
    as_of: datetime
    experiment: Experiment
    comparison: Comparison
    left_out: dict[str, int]

    @property
    def sentence(self) -> str:
        return f"{self.model}: {self.comparison.sentence}"

    def lines(self) -> Iterator[str]:
        yield self.sentence
        of, found = self.experiment, self.comparison
        until = f"to {of.ended:%Y-%m-%d %H:%M} UTC" if of.ended else "and goes on"
        yield (
            f"  {of.began:%Y-%m-%d %H:%M} UTC {until}, {of.percent} % to the challenger; each "
            "entity by its first answer, if that was to the population and its outcome is known"
        )
        for role, one in (
            (PRODUCTION, found.production),
            (CHALLENGER, found.challenger),
        ):
            metrics = "".join(
                f", {name} {value:.4f}" for name, value in one.metrics.items()
            )
            yield f"  {role:<10}  version {one.version}, {one.outcomes:,} outcomes{metrics}"
        for name, effect in found.effects.items():
            interval = f"(95 %: {effect.low:+.4f} to {effect.high:+.4f})"
            yield f"  difference  {name} {effect.difference:+.4f} {interval}"
        for why, count in sorted(self.left_out.items()):
            yield f"  {count:,} {why}"


REPORTS = TypeAdapter(ExperimentReport)


def read_report(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> ExperimentReport:
    """Compare in the newest experiment that has outcomes; or the newest.

    Raises:
        MonitoringError: there was none.
        RegistryError, DataError: a store that it needs does not answer.

    """
    with closing(Ledger(settings)) as ledger:
        found = experiments(
            [row for row in ledger.rows(spec.name) if row.time <= as_of]
        )
    if not found:
        raise MonitoringError(
            f"{spec.name}: no version was ever a challenger, so there is nothing to compare; run: "
            f"gyre promote {spec.name} VERSION --role challenger --percent 10 --reason …"
        )
    collect(settings)
    known = join_outcomes(settings, spec, as_of).known
    newest = evaluate(settings, spec, found[-1], known, as_of)
    older = (
        evaluate(settings, spec, each, known, as_of) for each in reversed(found[:-1])
    )
    with_outcomes = (each for each in chain([newest], older) if each.comparison.effects)
    return next(with_outcomes, newest)


def experiments(rows: Sequence[LedgerRow]) -> list[Experiment]:
    """Every experiment of a ledger, oldest first."""
    found: list[Experiment] = []
    for place, row in enumerate(rows):
        if not row.applied_at or row.role not in {PRODUCTION, CHALLENGER}:
            continue
        if found and found[-1].ended is None:
            found[-1] = replace(found[-1], ended=row.time)
        before = last_applied(rows[:place], PRODUCTION)
        production = before.to_version if before else None
        beside = row.role == CHALLENGER and row.percent < EVERYBODY
        if beside and production and row.to_version:
            found.append(
                Experiment(production, row.to_version, row.percent, row.time, None)
            )
    return found


def evaluate(
    settings: Settings,
    spec: ModelSpec,
    experiment: Experiment,
    known: Mapping[str, float],
    as_of: datetime,
) -> ExperimentReport:
    """known: actuals by request; raw data outranks them."""
    until = min(as_of, experiment.ended or as_of)
    received, role, version = (
        pc.field(name) for name in ("received", "role", "version")
    )
    either = (role == CHALLENGER) & (version == experiment.challenger)
    either |= (role == PRODUCTION) & (version == experiment.production)
    within = (pc.field("model") == spec.name) & (received >= experiment.began) & either
    answered = predictions(settings).read(
        columns=ANSWERS, where=within & (received <= until)
    )
    rows = answered.to_pandas()
    nameless, inside = rows["entity"].isna(), rows["in_population"].astype(bool)
    counted = rows[inside & ~nameless].sort_values("received", kind="stable")
    first = counted.drop_duplicates("entity")
    table = pa.Table.from_pandas(first, answered.schema, preserve_index=False)
    labels = actuals(settings, spec, table, known, as_of)
    matured = ~np.isnan(labels)
    by_version = counted.drop_duplicates(["entity", "role"])
    left_out = {
        "answers without an entity": int(nameless.sum()),
        "answers outside the population": int((~inside & ~nameless).sum()),
        "answered by the other version later": len(by_version) - len(first),
        "whose outcome is not known yet": int((~matured).sum()),
    }
    scores = logged_scores(spec, table).tolist()
    columns = {"y": labels, "p": scores, "said": first["prediction"]}
    entities = pd.DataFrame({"challenger": first["role"] == CHALLENGER, **columns})[
        matured
    ]
    comparison = compare(spec, experiment, entities)
    left_out = {why: count for why, count in left_out.items() if count}
    return ExperimentReport(spec.name, as_of, experiment, comparison, left_out)


def compare(
    spec: ModelSpec, experiment: Experiment, entities: pd.DataFrame
) -> Comparison:
    """Judge by the business figure: the cost where the spec has costs, else the loss.

    entities: a row each. challenger: whether it answered; y: what came true; p: the probability or
    the number answered, of many classes the list of theirs; said: 0 or 1, or that number.

    cost: of acting on who was said to be 1, and of who came true as 1; what the experiment shows
    and not what was assumed (`averted`), provided that who was said to be 1 was acted on.
    """
    is_ours, figures = entities["challenger"], _figures(spec, entities)
    ours, theirs = figures[is_ours], figures[~is_ours]
    decisive, fewer = figures.columns[0], min(len(ours), len(theirs))
    effects = dict[str, Effect]()
    conclusion: Conclusion = "not yet known"
    if fewer > 1:
        effects = {name: effect(ours[name], theirs[name]) for name in map(str, figures)}
    if fewer >= FEWEST and not effects[decisive].low <= 0 <= effects[decisive].high:
        conclusion = "better" if effects[decisive].high < 0 else "worse"
    variants = (
        _variant(experiment.production, theirs),
        _variant(experiment.challenger, ours),
    )
    return Comparison(*variants, decisive, effects, conclusion)


def effect(ours: "pd.Series[float]", theirs: "pd.Series[float]") -> Effect:
    """Difference of the means of two groups of at least two values each; Welch's interval."""
    difference = float(ours.mean() - theirs.mean())
    if ours.var() == theirs.var() == 0:
        return Effect(difference, difference, difference)
    with warnings.catch_warnings():
        # That all values of one group are equal.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(
            1 - LEVEL
        )
    return Effect(difference, float(interval.low), float(interval.high))


def _figures(spec: ModelSpec, entities: pd.DataFrame) -> pd.DataFrame:
    """One value per entity of each figure, the decisive one first; positions have no rate."""
    y, scored = (
        entities["y"].to_numpy(),
        Scored(np.array(entities["p"].tolist()), spec.threshold),
    )
    name = "squared_error" if spec.task == "regression" else "log_loss"
    figures = pd.DataFrame(
        {name: losses(y, scored), "rate": entities["y"]}, entities.index
    )
    if spec.classes:
        return figures[[name]]
    if spec.costs:
        cost = spec.costs.action * entities["said"] + spec.costs.loss * entities["y"]
        figures.insert(0, "cost", cost)
    return figures


def _variant(version: str, figures: pd.DataFrame) -> Variant:
    metrics = {str(name): float(value) for name, value in figures.mean().items()}
    known = {name: value for name, value in metrics.items() if isfinite(value)}
    return Variant(version, len(figures), known)

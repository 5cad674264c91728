"""Production against challenger by what came true: who did better, and is it sure?

An entity counts once, by its first answer while the two stood side by side, for the version that
gave that answer, whoever answered later. Which version that is, a hash of the entity decides, so
the two groups differ by nothing else; but a challenger's percent changes, and with it who comes
first, so they are compared within each percent (a stratum), and the differences averaged with
Cochran's weights (Biometrics 10, 1954). Intervals are Welch's, 95 %, degrees of freedom by
Satterthwaite (Biometrics 2, 1946), of means of one figure per entity; no variance counts for less
than that of both groups together. Of equals, 2 to 2.6 % are called better (tests/monitoring).

They hold for one look. Who looks every day and stops at the first "better" is wrong more often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime  # noqa: TC003  (pydantic reads the annotations)
from math import ceil, isfinite, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.stats import norm, t

from mlflow_server.registry import CHALLENGER, PRODUCTION
from mlflow_server.roles import last_applied
from training.metrics import TINY, Scored, all_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlflow_server.ledger import LedgerRow
    from stack.spec import Costs, ModelSpec
    from training.metrics import Labels, Scores

Word = Literal["better", "worse", "not yet known"]
FEWEST = 100
"""Outcomes of each version below which nothing is said: means are not yet normal."""
IN_SIGHT = 100
"""More than so many times the outcomes of today are not worth waiting for."""
POWER = 0.8
UNITS = {"cost": "cost per entity", "log_loss": "log loss", "squared_error": "squared error",
         "rate": "rate"}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A stretch in which `challenger` stood beside `production`; ended: None while it goes on.

    steps: when its percent was set, `began` first.
    """

    production: str
    challenger: str
    began: datetime
    ended: datetime | None
    steps: tuple[datetime, ...]


@dataclass(frozen=True)
class Outcomes:
    """One row per entity, as the text above says. challenger: who answered; step: from 0.

    y: what came true. p: the probability or the number answered. said: 0 or 1, or that number.
    """

    challenger: NDArray[np.bool_]
    step: NDArray[np.int64]
    y: Labels
    p: Scores
    said: Scores


@dataclass(frozen=True)
class ArmResult:
    """rate: the mean of what came true. metrics: by name, without those undefined here."""

    version: str
    outcomes: int
    rate: float | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class Lift:
    """Challenger minus production, its 95 % interval, and its standard error."""

    difference: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """lifts: by figure, of which `figure` decides the word. more: so many outcomes more would do;
    None if that is out of sight.

    Of every figure but `rate` less is better.
    """

    production: ArmResult
    challenger: ArmResult
    figure: str
    lifts: dict[str, Lift]
    word: Word
    more: int | None
    sentence: str


def trials(rows: Sequence[LedgerRow]) -> list[Trial]:
    """Every stretch in which a challenger stood beside production, oldest first."""
    found: list[Trial] = []
    for at, row in enumerate(rows):
        if not row.applied_at or row.role not in {PRODUCTION, CHALLENGER}:
            continue
        running = found[-1] if found and found[-1].ended is None else None
        if running and row.role == CHALLENGER and row.to_version == running.challenger:
            found[-1] = replace(running, steps=(*running.steps, row.time))
            continue
        if running:
            found[-1] = replace(running, ended=row.time)
        production = last_applied(rows[:at], PRODUCTION)
        if row.role == CHALLENGER and row.to_version and production and production.to_version:
            stood = (production.to_version, row.to_version, row.time)
            found.append(Trial(*stood, None, (row.time,)))
    return found


def comparable(seen: Outcomes) -> Outcomes:
    """Without the steps in which one of the versions answered nobody, or one entity alone."""
    rows = np.zeros(len(seen.y), bool)
    for each in np.unique(seen.step):
        here = seen.step == each
        ours = int((here & seen.challenger).sum())
        rows |= here & (min(ours, int(here.sum()) - ours) > 1)
    return Outcomes(**{name: column[rows] for name, column in vars(seen).items()})


def compare(spec: ModelSpec, trial: Trial, seen: Outcomes) -> Comparison:
    """Judge by the business figure: the cost where the spec has costs, else the loss.

    seen: `comparable`.

    cost: of acting on who was said to be 1, and of who came true as 1; what the experiment shows
    and not what was assumed (`averted`), provided that who was said to be 1 was acted on.
    """
    figures = _figures(spec, seen)
    figure = next(iter(figures))
    lifts = {name: lift(each, seen.challenger, seen.step) for name, each in figures.items()}
    ours = _result(spec.costs, trial.challenger, seen, seen.challenger, figures)
    theirs = _result(spec.costs, trial.production, seen, ~seen.challenger, figures)
    found = {name: each for name, each in lifts.items() if each is not None}
    fewer, outcomes = min(ours.outcomes, theirs.outcomes), len(seen.y)
    decisive = found.get(figure)
    word = "not yet known" if fewer < FEWEST or decisive is None else _word(decisive)
    more = _more(decisive, outcomes) if word == "not yet known" else 0
    if 0 < fewer < FEWEST:
        more = max(more or 0, ceil(outcomes * (FEWEST / fewer - 1)))
    sentence = _sentence(word, figure, decisive, ours, theirs, more)
    return Comparison(theirs, ours, figure, found, word, more, sentence)


def lift(values: Scores, challenger: NDArray[np.bool_], step: NDArray[np.int64]) -> Lift | None:
    """Difference of means within each step, averaged; None without any. Rows are `comparable`."""
    if not len(values):
        return None
    parts = [
        (values[challenger & (step == each)], values[~challenger & (step == each)])
        for each in np.unique(step)
    ]
    weights = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in parts])
    weights /= weights.sum()
    difference = float(weights @ [a.mean() - b.mean() for a, b in parts])
    spread = [
        (w**2 * max(x.var(ddof=1), _pooled(*pair)) / len(x), len(x) - 1)
        for w, pair in zip(weights, parts, strict=True)
        for x in pair
    ]
    variance = sum(part for part, _ in spread)
    if not variance:
        return Lift(difference, difference, difference, 0.0)
    freedom = variance**2 / sum(part**2 / free for part, free in spread)
    reach = float(t.ppf(0.975, freedom)) * sqrt(variance)
    return Lift(difference, difference - reach, difference + reach, sqrt(variance))


def _pooled(one: Scores, other: Scores) -> float:
    """Least variance of either: of skewed figures a small group with a low mean has a low variance
    by the same chance, and would pass for surely better in 4 % of cases.
    """
    squares = one.var() * len(one) + other.var() * len(other)
    return float(squares / (len(one) + len(other) - 2))


def _figures(spec: ModelSpec, seen: Outcomes) -> dict[str, Scores]:
    """One value per entity of each figure, the decisive one first."""
    y = seen.y.astype(float)
    if spec.task == "regression":
        return {"squared_error": (y - seen.p) ** 2, "rate": y}
    right = np.where(seen.y == 1, seen.p, 1 - seen.p)
    found = {"log_loss": -np.log(np.clip(right, TINY, 1)), "rate": y}
    if spec.costs is None:
        return found
    return {"cost": spec.costs.action * seen.said + spec.costs.loss * y} | found


def _result(
    costs: Costs | None,
    version: str,
    seen: Outcomes,
    own: NDArray[np.bool_],
    figures: dict[str, Scores],
) -> ArmResult:
    y, p = seen.y[own], seen.p[own]
    if not len(y):
        return ArmResult(version, 0, None, {})
    means = {name: float(each[own].mean()) for name, each in figures.items() if name != "rate"}
    if "log_loss" in means:
        auc = all_metrics(y, Scored(p, 0.5), costs)["auc"]
        means |= {"auc": auc} if isfinite(auc) else {}
    return ArmResult(version, len(y), float(y.mean()), means)


def _word(decisive: Lift) -> Word:
    if decisive.high < 0:
        return "better"
    return "worse" if decisive.low > 0 else "not yet known"


def _more(decisive: Lift | None, outcomes: int) -> int | None:
    """Outcomes still to come until a difference like this one is seen in 8 of 10 cases.

    n (z of 0.975 + z of 0.8)² (standard error / difference)²: Chow, Shao, Wang, Sample Size
    Calculations in Clinical Research (2008), 3.2. None if that is out of sight.
    """
    if decisive is None or not decisive.difference:
        return None
    z = norm.ppf(0.975) + norm.ppf(POWER)
    needed = outcomes * (z * decisive.error / decisive.difference) ** 2
    return ceil(max(needed - outcomes, 1)) if needed <= IN_SIGHT * outcomes else None


def _sentence(
    word: Word,
    figure: str,
    decisive: Lift | None,
    ours: ArmResult,
    theirs: ArmResult,
    more: int | None,
) -> str:
    who = f"version {ours.version} against version {theirs.version}"
    known = f"{ours.outcomes:,} and {theirs.outcomes:,} outcomes"
    if decisive is None:
        return f"{word}: {who}: {known}; {FEWEST} of each are the least"
    unit, shift = UNITS[figure], decisive.difference
    told = (
        f"{who}: {unit} {abs(shift):.3g} {'lower' if shift < 0 else 'higher'} "
        f"(95 %: {decisive.low:+.3g} to {decisive.high:+.3g}), {known}"
    )
    if word != "not yet known":
        return f"{word}: {told}"
    if more is None:
        return f"{word}: {told}; as good as equal: {IN_SIGHT} times as many would not tell"
    return f"{word}: {told}; if it stays so, about {more:,} more would tell"

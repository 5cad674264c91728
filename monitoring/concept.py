"""Does the version still know what it knew? Its errors then and now, by segment and over time.

Then: the snapshot it was evaluated on. Now: the newest that has matured since. The mean loss per
row is compared by Welch's t-test (Biometrika 34, 1947), one-sided, for all rows and each value of
the spec's segment, adjusted by Holm (Scandinavian Journal of Statistics 6, 1979): the chance that
any at all is found is the level. The same customers in both make it err on the quiet side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ttest_ind

from monitoring.verdict import CONCEPT, CONCEPT_SHARE, ECE, SURELY, Finding
from training.calibration import calibration
from training.metrics import losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.metrics import Labels, Scored, Scores

FEWEST = 100
"""Rows of a segment, then and now, below which it is left out: means are not yet normal."""
DRAWS, USUAL = 200, 0.95


@dataclass(frozen=True)
class Outcomes:
    """Rows with what came true, what was said of them, and their segment (str [N]), if any."""

    y: Labels
    said: Scored
    segment: NDArray[np.object_] | None = None


@dataclass(frozen=True)
class Rise:
    """Mean loss of a segment (None: of all rows) then and now; p: adjusted, that it did not rise.

    rows: now.
    """

    segment: str | None
    before: float
    now: float
    p: float
    rows: int


def rises(before: Outcomes, now: Outcomes) -> list[Rise]:
    """Compare all rows first, then every segment that both have enough rows of."""
    found = [_rise(None, before, now)]
    if before.segment is not None and now.segment is not None:
        for value in sorted(set(before.segment) & set(now.segment)):
            parts = [_part(each, value) for each in (before, now)]
            if min(len(part.y) for part in parts) >= FEWEST:
                found.append(_rise(str(value), *parts))
    adjusted = holm([rise.p for rise in found])
    return [replace(rise, p=p) for rise, p in zip(found, adjusted, strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in their order (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1)
    return [float(each) for each in adjusted]


def decayed(found: Sequence[Rise], *, classes: bool) -> tuple[list[Finding], list[Finding]]:
    """Return what is surely and much worse, and what is surely worse, not by much."""
    bad, notes = list[Finding](), list[Finding]()
    for rise in found:
        if not rise.p < SURELY:
            continue
        where = f"segment {rise.segment}" if rise.segment else "all rows"
        what = "log loss" if classes else "squared error"
        text = (
            f"concept drift, {where}: {what} {rise.now:.3g}, was {rise.before:.3g} "
            f"(p {rise.p:.2g}, {rise.rows} rows)"
        )
        much = CONCEPT if classes else CONCEPT_SHARE * rise.before
        into = bad if rise.now - rise.before >= much else notes
        into.append(Finding(text, rise.segment or "loss", "concept_drift"))
    return bad, notes


def miscalibrated(before: Outcomes, now: Outcomes, seed: int) -> tuple[float, list[Finding]]:
    """Expected calibration error now, and whether it rose too much. Of numbers it is not judged.

    What chance gives: its 95th percentile where scores are true (consistency resampling, Bröcker
    and Smith, Weather and Forecasting 22, 2007); few rows have it though nothing is wrong.
    """
    ece, was = (_ece(each.y, each.said.scores) for each in (now, before))
    if now.said.threshold is None or ece - was < ECE:
        return ece, []
    random, p = np.random.default_rng(seed), now.said.scores
    by_chance = [_ece((random.random(len(p)) < p).astype(np.int64), p) for _ in range(DRAWS)]
    if ece - max(was, float(np.quantile(by_chance, USUAL))) < ECE:
        return ece, []
    text = f"calibration error {ece:.3f} ({len(now.y)} rows), was {was:.3f}"
    return ece, [Finding(text, "score", "calibration")]


def _ece(y: Labels, p: Scores) -> float:
    return calibration(y, p)["ece"]


def _part(outcomes: Outcomes, value: object) -> Outcomes:
    rows = outcomes.segment == value
    return Outcomes(outcomes.y[rows], replace(outcomes.said, scores=outcomes.said.scores[rows]))


def _rise(segment: str | None, before: Outcomes, now: Outcomes) -> Rise:
    then, today = losses(before.y, before.said), losses(now.y, now.said)
    if then.std() == today.std() == 0:
        p = float(today.mean() <= then.mean())
    else:
        p = float(ttest_ind(today, then, equal_var=False, alternative="greater").pvalue)
    return Rise(segment, float(then.mean()), float(today.mean()), p, len(today))

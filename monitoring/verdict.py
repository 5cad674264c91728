"""What a window says of its version: pure functions over measured figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

from stack.spec import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from monitoring.decision import Verdict
    from monitoring.drift import Drift
    from monitoring.performance import Performance
    from stack.spec import DriftLimits

FEWEST = 200
"""Entities below which a window has no verdict: PSI of ten deciles is noise there. So it is of a
column that has fewer values because the others are null."""
FEWEST_FOR_MODERATE = 300

# What is too much, and what is worth a word. PSI has the spec's [drift].
NULLS_MORE = 0.05
"""Points of the share of nulls above the reference's, and beyond chance."""
UNSEEN, UNSEEN_WORD = 0.05, 0.01
"""Share of values that the reference never had: other categories, numbers out of its range."""
ERRORS = 3.29
"""Standard errors that chance exceeds 1 time in 1,000."""
MEAN_SCORE, MEAN_SCORE_SPREAD = 0.10, 0.10
"""Change of the mean score: a share of what it was, and of the scores' standard deviation (of
numbers around 0 the mean is no measure), and beyond chance."""
WATCHED = {"f1": (0.05, 0.0), "auc": (0.05, 0.0), "accuracy": (0.05, 0.0), "log_loss": (0.05, 0.0),
           "rmse": (0.0, 0.05)}  # fmt: skip
"""How much worse than when the version was evaluated is too much: points, beyond chance, and a
share of what it was then. A version has those of its task.
"""
WATCHED_ERRORS = 3.0
"""Standard errors beyond which it counts: so that chance makes one of the four metrics worse in
less than 1 of 100 looks (docs/monitoring.md)."""
CONCEPT, CONCEPT_SHARE, SURELY = 0.05, 0.10, 0.01
"""Rise of the mean loss of a segment: points of log loss, a share of a squared error; and the most
that its adjusted p may be."""
ECE = 0.05
"""Rise of the expected calibration error above what it was, and above what chance gives."""
VOLUME, FEWEST_WINDOWS = 0.5, 3
"""Share of the usual entities below which a window is a collapse; windows that say what is usual.
"""


class Finding(str):
    """One thing seen, in words; of what, of which kind, and its PSI where that is judged."""

    __slots__ = ("drift_type", "feature", "psi")
    feature: str
    drift_type: str
    psi: float | None

    def __new__(cls, text: str, feature: str, drift_type: str, psi: float | None = None) -> Self:
        made = super().__new__(cls, text)
        made.feature, made.drift_type, made.psi = feature, drift_type, psi
        return made


def judge(
    limits: DriftLimits, entities: int, drift: Drift | None, performance: Sequence[Finding]
) -> tuple[Verdict, list[Finding], list[Finding]]:
    """Return the verdict, what made it bad, and what is worth a word but not an action.

    performance: what is too much worse on outcomes. drift is None where a window is too small or
    the reference is missing: insufficient_data, never ok and never an alarm, whatever performance
    says. So is a column that only the reference lacks all values of, unless something else is bad.
    """
    if drift is None:
        return "insufficient_data", [], list(performance)
    bad, notes, compared = list(performance), list[Finding](), True
    for found, acts in (*_psi(limits, entities, drift), *_unseen(limits, entities, drift)):
        (bad if acts else notes).append(found)
    bad += _mean_score(drift)
    for name, share in drift.null_share.items():
        before = drift.reference_null_share[name]
        if share - before >= max(NULLS_MORE, by_chance(before, entities)):
            bad.append(Finding(f"{name}: {share:.0%} null, {before:.0%} before", name, "nulls"))
        elif share < 1 and not before < 1:  # nan too: a reference without rows
            text = f"{name}: nothing to compare with, the reference has no value of it"
            notes.append(Finding(text, name, "nulls"))
            compared = False
    if bad:
        return "bad", bad, notes
    return ("ok" if compared else "insufficient_data"), bad, notes


def by_chance(share: float, rows: float) -> float:
    """How far the share of so many rows may be from what it is of all of them, by chance alone."""
    return ERRORS * math.sqrt(share * (1 - share) / rows)


def _psi(limits: DriftLimits, entities: int, drift: Drift) -> Iterator[tuple[Finding, bool]]:
    for name, value in drift.psi.items():
        kind = "prediction_drift" if name == "score" else "data_drift"
        found = Finding(f"{name}: PSI {value:.2f}", name, kind, value)
        values = drift.filled.get(name, entities)
        if value >= limits.significant and values < FEWEST:
            text = f"{name}: PSI {value:.2f} of {values} values, too few to judge"
            yield Finding(text, name, kind, value), False
        elif value >= limits.significant and name not in limits.informative:
            yield found, True
        elif value >= limits.moderate and values >= FEWEST_FOR_MODERATE:
            yield found, False


def _unseen(limits: DriftLimits, entities: int, drift: Drift) -> Iterator[tuple[Finding, bool]]:
    for kind, shares, what in (
        ("new_categories", drift.new_categories, "of categories that the reference has not"),
        ("out_of_range", drift.out_of_range, "out of the reference's range"),
    ):
        for name, share in shares.items():
            if share >= UNSEEN_WORD:
                enough = drift.filled.get(name, entities) >= FEWEST
                acts = share >= UNSEEN and enough and name not in limits.informative
                yield Finding(f"{name}: {share:.0%} {what}", name, kind), acts


def _mean_score(drift: Drift) -> Iterator[Finding]:
    if drift.means is None:
        return
    before, now = drift.means.before, drift.means.now
    least = max(
        MEAN_SCORE * abs(before),
        MEAN_SCORE_SPREAD * drift.means.spread,
        ERRORS * drift.means.error,
    )
    if abs(now - before) > least:
        share = f" ({now / before - 1:+.0%})" if before else ""
        text = f"score: mean {now:.3g}, was {before:.3g}{share}"
        yield Finding(text, "score", "prediction_drift")


def worse(seen: Performance, evaluated: Mapping[str, float]) -> list[Finding]:
    """Each watched metric that is too much worse than when the version was evaluated."""
    found = []
    for name, (points, share) in WATCHED.items():
        if name not in seen.metrics:
            continue
        now, was = seen.metrics[name], evaluated[name]
        sign = 1 if name in LOWER_IS_BETTER else -1
        loss, surely_lost = (sign * (each - was) for each in (now, seen.surely.get(name, now)))
        if loss >= points + share * was and surely_lost >= share * was:
            text = f"{name} {now:.3f} ({seen.kind}, {seen.about}), was {was:.3f}"
            found.append(Finding(text, name, "performance"))
    return found


def collapse(entities: float, usual: float | None) -> Finding | None:
    """Say that far fewer entities asked in a window than `usual`, as far as that is known."""
    if usual is None or usual < FEWEST or entities >= VOLUME * usual:
        return None
    text = f"{entities:.0f} entities in 24 hours, {usual:.0f} are usual"
    return Finding(text, "entities", "volume")

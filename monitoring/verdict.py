"""What a window says of its version: pure functions over measured figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitoring.decision import Verdict
    from monitoring.drift import Drift
    from stack.spec import DriftLimits

FEWEST = 200
"""Entities below which a window has no verdict: PSI of ten deciles is noise there."""
FEWEST_FOR_MODERATE = 300
FEWEST_REQUESTS = 100
FAILING_SHARE = 0.05
NULLS_MORE = 0.05


def judge(
    limits: DriftLimits, entities: int, drift: Drift | None, performance: Sequence[str]
) -> tuple[Verdict, list[str], list[str]]:
    """Return the verdict, what made it bad, and what is worth a word but not an action.

    drift is None where a window is too small or the reference is missing: insufficient_data, never
    ok and never an alarm, whatever performance says. So is a column that only the reference lacks
    all values of, unless something else is bad.
    """
    if drift is None:
        return "insufficient_data", [], list(performance)
    bad, notes, compared = list(performance), [], True
    for name, value in drift.psi.items():
        text = f"{name}: PSI {value:.2f}"
        if value >= limits.significant and name not in limits.informative:
            bad.append(text)
        elif value >= limits.moderate and entities >= FEWEST_FOR_MODERATE:
            notes.append(text)
    for name, share in drift.null_share.items():
        before = drift.reference_null_share[name]
        if share - before >= NULLS_MORE:
            bad.append(f"{name}: {share:.0%} null, {before:.0%} before")
        elif share < 1 and not before < 1:  # nan too: a reference without rows
            notes.append(f"{name}: nothing to compare with, the reference has no value of it")
            compared = False
    if bad:
        return "bad", bad, notes
    return ("ok" if compared else "insufficient_data"), bad, notes


def harm(
    scores: Sequence[float],
    threshold: float | None,
    reference: Sequence[float],
    failed: int,
    asked: int,
) -> str | None:
    """Say why a version must go back: it fails, or its scores collapsed; None if it need not.

    scores: of the window, one per entity. reference: of the evaluated snapshot. threshold: None
    where numbers are predicted, which have no sides.
    """
    if asked >= FEWEST_REQUESTS and failed >= FAILING_SHARE * asked:
        return f"{failed} of {asked} predictions failed"
    if len(scores) < FEWEST:
        return None
    if max(scores) == min(scores):
        return f"every one of {len(scores)} scores is {scores[0]:.6g}"
    if threshold is None:
        return None
    for side, name in ((True, "positive"), (False, "negative")):
        one_sided = all((score >= threshold) == side for score in scores)
        if one_sided and not all((score >= threshold) == side for score in reference):
            return f"every one of {len(scores)} predictions is {name}"
    return None

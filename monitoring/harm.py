"""Why a version must go back: pure functions of what it did. What is unknown is no harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.verdict import FEWEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitoring.failures import Counted

FEWEST_REQUESTS = 100
FAILING_SHARE = 0.05
CHANCE = 0.001
"""What a window does of itself oftener than this, going by the reference's shares, is no harm."""
SLOWER, SLOWER_SECONDS = 3.0, 0.02
"""Times as long as the version before took, and so much longer: both."""
SHARES = {0.5: "half", 0.95: "95 %"}
"""Of the predictions. Both must be slower: a few large requests lengthen the tail alone."""


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
        usual = _share([score == scores[0] for score in reference])
        # One that always was one score is harmful for it, however usual.
        if usual == 1 or usual ** len(scores) < CHANCE:
            return f"every one of {len(scores)} scores is {scores[0]:.6g}"
    if threshold is None:
        return None
    for side, name in ((True, "positive"), (False, "negative")):
        if all((score >= threshold) == side for score in scores):
            usual = _share([(score >= threshold) == side for score in reference])
            if reference and usual ** len(scores) < CHANCE:
                return f"every one of {len(scores)} predictions is {name}"
    return None


def _share(those: Sequence[bool]) -> float:
    return sum(those) / len(those) if those else 0.0


def slow(now: Counted, before: Counted) -> str | None:
    """Say by how much a version takes longer than the version before it did; None if it does not.

    now: of late. before: of the version before, all that serving still knows.
    """
    if min(now.timed, before.timed) < FEWEST_REQUESTS:
        return None
    told = []
    for share, words in SHARES.items():
        ours, theirs = now.quantile(share) or 0.0, before.quantile(share) or 0.0
        if ours < max(SLOWER * theirs, theirs + SLOWER_SECONDS):
            return None
        told.append(f"{words} within {ours * 1000:.0f} ms, was {theirs * 1000:.0f} ms")
    return f"predictions are slow: {', '.join(told)}"

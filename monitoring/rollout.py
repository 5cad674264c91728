"""What follows for a version on its way into production: a pure function, stored with its inputs.

Read top to bottom, the first rule that fits decides:

    wrong     it fails, is slow or scores otherwise than production may bear    abort
    few       too few predictions of one of the two, or an unknown latency      hold
    soon      the step has not lasted long enough                               hold
    unsure    scores too far apart for what is asked, too few to be sure        hold
    passed    there is a next step                                              advance
    through   there is none                                                     done

What comes true takes too long to wait for, and delays no step: `gyre compare` tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from stack.spec import Rollout

Action = Literal["hold", "advance", "abort", "done"]
WHOLE = 100
JITTER = 0.005
"""Seconds that do not count as slower, whatever the ratio."""
SURELY = 1.63
"""Of the two-sample Kolmogorov-Smirnov distance at 1 % (Smirnov 1948, Ann. Math. Statist. 19)."""


@dataclass(frozen=True)
class Arm:
    """What one version did since the step began.

    answered: predictions for the label's population; of others a score means nothing. seconds:
    95th percentile of a prediction; None if unknown. scores: their percentiles 0, 1, … 100; empty
    without any.
    """

    answered: int
    failed: int
    seconds: float | None
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Seen:
    """Everything a verdict depends on, beside the spec's [rollout].

    percent: what the challenger answers of a hundred; 0: it is a shadow. before: production's arm
    of the step before, which stands for it where the challenger answers everybody.
    """

    percent: int
    minutes: float
    production: Arm
    challenger: Arm
    before: Arm | None = None


@dataclass(frozen=True)
class Verdict:
    """What to do, and why in words; percent: what the challenger answers from then on."""

    action: Action
    percent: int
    reason: str


def decide(policy: Rollout, seen: Seen) -> Verdict:
    """Apply the rules above; the first that fits decides."""
    ours, theirs = seen.challenger, seen.production
    if seen.percent == WHOLE and seen.before:
        theirs = seen.before
    if why := wrong(policy, ours, theirs):
        return Verdict("abort", 0, why)
    if why := _waits(policy, seen.minutes, ours, theirs):
        return Verdict("hold", seen.percent, why)
    following = [step for step in policy.steps if step > seen.percent]
    told = _told(ours, theirs)
    if following:
        return Verdict("advance", following[0], told)
    return Verdict("done", WHOLE, told)


def wrong(policy: Rollout, ours: Arm, theirs: Arm) -> str | None:
    """Say what rules the version out. Failures do as soon as no further request can mend them."""
    allowed = theirs.failed / _asked(policy, theirs) + policy.errors
    if ours.failed > allowed * _asked(policy, ours):
        failed = f"{ours.failed} of {ours.answered + ours.failed} predictions failed"
        return f"{failed}, at most {allowed:.1%} is allowed"
    if min(ours.answered, theirs.answered) < policy.requests:
        return None
    if ours.seconds and theirs.seconds:
        most = max(policy.latency * theirs.seconds, theirs.seconds + JITTER)
        if ours.seconds > most:
            return f"95 % of predictions within {_ms(ours.seconds)}, at most {_ms(most)} is allowed"
    if ours.scores[0] == ours.scores[-1] != theirs.scores[-1]:
        return f"every one of {ours.answered} scores is {ours.scores[0]:.6g}"
    apart, noise = distance(ours, theirs), SURELY * sqrt(1 / ours.answered + 1 / theirs.answered)
    if apart - noise > policy.scores:
        return f"its scores are {apart:.2f} from production's, {policy.scores:g} is allowed"
    return None


def _waits(policy: Rollout, minutes: float, ours: Arm, theirs: Arm) -> str | None:
    for name, arm in (("it", ours), ("production", theirs)):
        if arm.answered < policy.requests:
            return f"{name} has answered {arm.answered} of {policy.requests} requests"
        if arm.seconds is None:
            return f"nothing is known of how long {name} takes"
    if minutes < policy.minutes:
        return f"{minutes:.0f} of {policy.minutes:g} minutes have passed"
    if (apart := distance(ours, theirs)) > policy.scores:
        return f"scores {apart:.2f} from production's, {policy.scores:g} is allowed: too few to say"
    return None


def distance(one: Arm, other: Arm) -> float:
    """Largest difference between the shares of both below any one score, to a hundredth."""
    first, second = np.array(one.scores), np.array(other.scores)
    grid = np.concatenate([first, second])
    shares = [np.searchsorted(each, grid, side="right") / len(each) for each in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def _asked(policy: Rollout, arm: Arm) -> int:
    return max(arm.answered + arm.failed, policy.requests)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _told(ours: Arm, theirs: Arm) -> str:
    return (
        f"{ours.answered} answered beside {theirs.answered}, {ours.failed} failed beside "
        f"{theirs.failed}, 95 % within {_ms(ours.seconds or 0)} beside "
        f"{_ms(theirs.seconds or 0)}, scores {distance(ours, theirs):.2f} apart"
    )

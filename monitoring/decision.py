"""What follows from what the monitor saw: a pure function, stored with its inputs.

Read top to bottom, the first rule that fits decides:

    stale                as_of lies before the newest promotion          nothing
    harm                 failing, slow, collapsed, surely outdone        roll back
    insufficient_data    the newest window has too few entities          nothing
    ok                   no actionable drift, performance holds          nothing
    first_bad_window     fewer than 2 bad of the last 5 windows          nothing
    escalate             2 retrainings in a row did not help             alert
    answered             a retraining for this cause goes on or is over  nothing
    cooldown             one was decided too short a time ago            nothing
    parked               nothing new to learn until a label matures      alert
    drift                none of these                                   retrain

An alert goes out with every action but nothing, once per cause; later bad windows of the same cause
only raise its count, and once they are over (`settled`) that is told. A stale look is told to who
asked, and neither stored nor a window to count.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta  # noqa: TC003  (pydantic reads the annotations)
from typing import Literal

from pydantic import TypeAdapter

WINDOWS, BAD = 5, 2
HELPLESS = 2
"""Retrainings that have ended and did not help: a person must look."""
STALE = "stale"
Verdict = Literal["ok", "bad", "insufficient_data"]
Action = Literal["nothing", "alert", "retrain", "rollback"]


@dataclass(frozen=True)
class Inputs:
    """Everything a decision depends on.

    verdicts: of this version's windows since its promotion up to `as_of`, oldest first.
    findings: what made the newest window bad, such as `total_spend_30d: PSI 0.31`.
    harm: why the version does harm, None if it does not.
    previous: the version to go back to, None if there is none.
    cause: names what a retraining would answer; the same until a new label matures.
    answered: whether a retraining for this cause is on its way or has finished.
    last_retraining: when the newest one was decided, UTC.
    learnable: whether a training now would see anything that no earlier one saw.
    last_promotion: when the newest one was made, by the clock, UTC.
    tried: when retrainings were decided that have ended since a window was last ok, a person
        promoted, or a training helped: its version went into production and was surely better than
        the one before, on the same outcomes; UTC.

    What has a default is not in the decisions of older releases.
    """

    as_of: datetime
    version: str
    verdicts: tuple[Verdict, ...]
    findings: tuple[str, ...]
    harm: str | None
    previous: str | None
    cause: str
    answered: bool
    last_retraining: datetime | None
    cooldown: timedelta
    learnable: bool
    last_promotion: datetime | None = None
    tried: tuple[datetime, ...] = ()


INPUTS = TypeAdapter(Inputs)
"""As JSON, in which form they are stored with the decision."""


@dataclass(frozen=True)
class Decision:
    """What to do, by which rule, and why in words."""

    action: Action
    rule: str
    reason: str


def settled(verdicts: tuple[Verdict, ...]) -> bool:
    """Whether bad windows are over: the newest is ok, and too few of the last 5 are bad."""
    return verdicts[-1:] == ("ok",) and verdicts[-WINDOWS:].count("bad") < BAD


def helpless(seen: Inputs) -> bool:
    """Whether retraining does not help, so that a person must look."""
    return len(seen.tried) >= HELPLESS and seen.verdicts[-1:] != ("ok",)


def decide(seen: Inputs) -> Decision:  # noqa: C901, PLR0911  (a rule, a return)
    """Apply the rules above; the first that fits decides."""
    newest = seen.verdicts[-1] if seen.verdicts else "insufficient_data"
    bad = seen.verdicts[-WINDOWS:].count("bad")
    found = ", ".join(seen.findings)
    if seen.last_promotion and seen.as_of < seen.last_promotion:
        promoted = f"{seen.last_promotion:%Y-%m-%d %H:%M:%S}"
        return Decision("nothing", STALE, f"older than the newest promotion, of {promoted} UTC")
    if seen.harm is not None:
        if seen.previous is None:
            return Decision("alert", "harm", f"{seen.harm}; there is no version to go back to")
        return Decision("rollback", "harm", seen.harm)
    if newest == "insufficient_data":
        return Decision("nothing", newest, found or "too few entities for a verdict")
    if newest == "ok":
        return Decision("nothing", newest, "no actionable drift, performance holds")
    if bad < BAD:
        return Decision("nothing", "first_bad_window", f"{found}; {bad} bad of the last {WINDOWS}")
    if helpless(seen):
        tried = ", ".join(f"{at:%Y-%m-%d %H:%M}" for at in seen.tried)
        why = f"{len(seen.tried)} retrainings in a row did not help ({tried} UTC)"
        return Decision("alert", "escalate", f"{found}; {why}: a person must look")
    if seen.answered:
        return Decision("nothing", "answered", f"{found}; a retraining was started: {seen.cause}")
    if seen.last_retraining and seen.as_of < seen.last_retraining + seen.cooldown:
        until = seen.last_retraining + seen.cooldown
        return Decision("nothing", "cooldown", f"{found}; cooling down to {until:%Y-%m-%d %H:%M}")
    if not seen.learnable:
        return Decision("alert", "parked", f"{found}; nothing new to learn until a label matures")
    return Decision("retrain", "drift", found)

"""The verdict on a window, and what follows: pure functions; inputs are stored with a decision.

Read top to bottom, the first rule that fits decides:

    stale                as_of lies before the newest promotion          nothing
    harm                 failing, slow, collapsed, the one before better roll back
    insufficient_data    the newest window has too few entities          nothing
    ok                   no actionable drift, performance holds          nothing
    first_bad_window     fewer than 2 bad of the last 5 windows *        nothing
    answered             a retraining for this cause goes on or is over  nothing
    cooldown             one was decided too short a time ago            nothing
    parked               nothing new to learn until a label matures      alert
    drift                none of these                                   retrain

(* the numbers are those of the spec's [monitoring])

An alert goes out with every action but nothing, once per cause. A stale run is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitoring.checks.result import CheckResult

STALE = "stale"
Verdict = Literal["ok", "bad", "insufficient_data"]
Action = Literal["nothing", "alert", "retrain", "rollback"]


@dataclass(frozen=True)
class Inputs:
    """Everything a decision depends on. Times are UTC.

    verdicts: of this version's windows since its promotion up to `as_of`, oldest first.
    findings: what made the newest window bad, such as `total_spend_30d: PSI 0.31`.
    harm: why the version does harm. previous: the version to go back to.
    cause: names what a retraining would answer; the same until a new label matures.
    answered: whether a retraining for this cause is on its way or has finished.
    learnable: whether a training now would see anything that no earlier one saw.
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
    windows: int = 5
    bad_windows: int = 2

    @property
    def newest_verdicts(self) -> tuple[Verdict, ...]:
        return self.verdicts[-self.windows :]


INPUTS = TypeAdapter(Inputs)


@dataclass(frozen=True)
class Decision:
    action: Action
    rule: str
    reason: str


def judge(results: Sequence[CheckResult]) -> Verdict:
    """Say how a window is; one too small, or without a reference, is neither ok nor bad."""
    unknown = {result.name for result in results if result.status == "unknown"}
    if unknown & {"entities", "reference"}:
        return "insufficient_data"
    if any(result.status == "bad" for result in results):
        return "bad"
    lacks_a_column = any(name.startswith("nulls_") for name in unknown)
    return "insufficient_data" if lacks_a_column else "ok"


def decide(seen: Inputs) -> Decision:  # noqa: PLR0911  (a rule, a return)
    """Apply the rules above; the first that fits decides."""
    newest = seen.verdicts[-1] if seen.verdicts else "insufficient_data"
    bad = seen.newest_verdicts.count("bad")
    found = ", ".join(seen.findings)
    if seen.last_promotion and seen.as_of < seen.last_promotion:
        promoted = f"{seen.last_promotion:%Y-%m-%d %H:%M:%S}"
        return Decision(
            "nothing", STALE, f"older than the newest promotion, of {promoted} UTC"
        )
    if seen.harm is not None:
        if seen.previous is None:
            return Decision(
                "alert", "harm", f"{seen.harm}; there is no version to go back to"
            )
        return Decision("rollback", "harm", seen.harm)
    if newest == "insufficient_data":
        return Decision("nothing", newest, found or "too few entities for a verdict")
    if newest == "ok":
        return Decision("nothing", newest, "no actionable drift, performance holds")
    if bad < seen.bad_windows:
        why = f"{found}; {bad} bad of the last {seen.windows}"
        return Decision("nothing", "first_bad_window", why)
    if seen.answered:
        return Decision(
            "nothing", "answered", f"{found}; a retraining was started: {seen.cause}"
        )
    if seen.last_retraining and seen.as_of < seen.last_retraining + seen.cooldown:
        until = seen.last_retraining + seen.cooldown
        return Decision(
            "nothing", "cooldown", f"{found}; cooling down to {until:%Y-%m-%d %H:%M}"
        )
    if not seen.learnable:
        return Decision(
            "alert", "parked", f"{found}; nothing new to learn until a label matures"
        )
    return Decision("retrain", "drift", found)

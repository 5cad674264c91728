"""When to retrain: five policies walked through time, and what came of each. Pure functions.

A model is named by the snapshot it is evaluated on, the newest matured one: two trainings that see
the same labels make the same model.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

from monitoring.decision import Decision, Inputs, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Trigger = Literal["nothing", "schedule", "drift", "outcomes"]


@dataclass(frozen=True)
class Policy:
    """trigger: what it retrains by. drift and outcomes go through the loop's own decision.

    every: when a scheduled training is due; of a month at its first moment.
    """

    name: str
    trigger: Trigger
    every: Literal["week", "month"] = "week"


POLICIES = (
    Policy("frozen", "nothing"),
    Policy("monthly", "schedule", "month"),
    Policy("weekly", "schedule"),
    Policy("drift-triggered", "drift"),
    Policy("outcome-triggered", "outcomes"),
)


@dataclass(frozen=True)
class Step:
    """What a policy did at `as_of`. trained: the model it made; serves: the one from then on."""

    as_of: datetime
    action: str
    rule: str
    reason: str
    trained: datetime | None
    serves: datetime


@dataclass(frozen=True)
class Alarms:
    """Retrainings after the first model, those that were no better, and those not known yet."""

    raised: int
    false: int
    unknown: int


class World(Protocol):
    """What a policy can ask of the history as it was at a moment."""

    def newest(self, as_of: datetime) -> datetime:
        """Name what a training at `as_of` would make."""

    def look(
        self, model: datetime, trigger: Trigger, as_of: datetime
    ) -> tuple[Verdict, Sequence[str]]:
        """Say how the serving model does at `as_of`, and what is bad."""

    def passes(self, challenger: datetime, champion: datetime) -> bool:
        """Train the challenger; say whether the gates let it replace the champion."""

    def helps(self, challenger: datetime, champion: datetime) -> bool:
        """Say whether the challenger is surely better than the champion."""


def walk(
    policy: Policy, moments: Sequence[datetime], world: World, cooldown: timedelta
) -> tuple[Step, ...]:
    """Go from moment to moment; at the first one every policy trains the same model.

    All act at the same moments, a week apart: on a calendar of its own a policy would be scored
    just after, or just before, it trains.
    """
    serves = world.newest(moments[0])
    steps = [Step(moments[0], "train", "first", "the first model", serves, serves)]
    learnt, causes, verdicts = {serves}, set[str](), tuple[Verdict, ...]()
    retrained: datetime | None = None
    tried = tuple[datetime, ...]()
    for last, as_of in pairwise(moments):
        if policy.every == "month" and as_of.month == last.month:
            continue
        newest = world.newest(as_of)
        if policy.trigger in ("nothing", "schedule"):
            decision = _scheduled(policy, learnable=newest not in learnt)
            cause = policy.name
        else:
            verdict, findings = world.look(serves, policy.trigger, as_of)
            verdicts, cause = (*verdicts, verdict), f"{policy.trigger}, {serves}, {newest}"
            tried = () if verdict == "ok" else tried
            decision = decide(Inputs(
                as_of=as_of, version=f"{serves:%Y-%m-%d}", verdicts=verdicts,
                findings=tuple(findings), harm=None, previous=None, cause=cause,
                answered=cause in causes, last_retraining=retrained, cooldown=cooldown,
                learnable=newest not in learnt, tried=tried,
            ))  # fmt: skip
        trained = newest if decision.action == "retrain" else None
        if trained:
            retrained, tried = as_of, (*tried, as_of)
            learnt.add(newest)
            causes.add(cause)
            if world.passes(newest, serves):
                tried = () if world.helps(newest, serves) else tried
                serves, verdicts = newest, ()
        steps.append(Step(as_of, decision.action, decision.rule, decision.reason, trained, serves))
    return tuple(steps)


def _scheduled(policy: Policy, *, learnable: bool) -> Decision:
    if policy.trigger == "nothing":
        return Decision("nothing", "frozen", "")
    if not learnable:
        return Decision("nothing", "nothing_new", "no snapshot has matured since")
    return Decision("retrain", "schedule", f"{policy.every}ly")


def serving(steps: Sequence[Step], at: datetime) -> datetime:
    """Name the model that serves at `at`, which is not before the first step."""
    return steps[bisect_right([step.as_of for step in steps], at) - 1].serves


def first_trigger(steps: Sequence[Step]) -> datetime | None:
    """When the policy first acted on its first model: retrained it, or called a person."""
    return next((step.as_of for step in steps[1:] if step.action != "nothing"), None)


def decayed(behind: Mapping[datetime, float]) -> datetime | None:
    """First month in which the first model is measurably worse than one trained that month.

    behind: month → the lower end of the interval of how much worse its loss is.
    """
    return min((month for month, surely in behind.items() if surely > 0), default=None)


def alarms(
    steps: Sequence[Step],
    losses: Mapping[datetime, Mapping[datetime, float]],
    wait: timedelta,
) -> Alarms:
    """Judge each retraining on the next snapshot to mature: neither model has seen its labels.

    losses: model → snapshot → loss. wait: from a snapshot to its labels.
    """
    raised = false = unknown = 0
    for before, step in pairwise(steps):
        if step.trained is None:
            continue
        raised += 1
        known = losses[step.trained]
        ahead = min((month for month in known if month + wait > step.as_of), default=None)
        if ahead is None:
            unknown += 1
        elif not known[ahead] < losses[before.serves][ahead]:
            false += 1
    return Alarms(raised, false, unknown)

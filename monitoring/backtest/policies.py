"""When to retrain: five policies walked through time, and what came of each. Pure functions.

A model is named by the snapshot it is evaluated on, the newest matured one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from monitoring.decision import Decision, Inputs, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from monitoring.backtest.history import History

Policy = Literal["frozen", "monthly", "weekly", "drift-triggered", "outcome-triggered"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Outcome = Literal["refused", "passed"]
"""Of a retraining, by the gates."""


@dataclass(frozen=True)
class Step:
    """What a policy did at `as_of`. trained: the model it made; serves: the one from then on."""

    as_of: datetime
    action: str
    rule: str
    reason: str
    trained: datetime | None
    serves: datetime
    verdict: Verdict | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Alarms:
    """Retrainings after the first model, those that were no better, and those not known yet."""

    raised: int
    false: int
    unknown: int


def walk(
    policy: Policy, moments: Sequence[datetime], history: History, cooldown: timedelta
) -> tuple[Step, ...]:
    """Return what the policy does at each moment; at the first one all train the same model.

    All act at the same moments, a week apart: on a calendar of its own a policy would be scored
    just after, or just before, it trains.
    """
    model = history.newest(moments[0])
    first = Step(
        moments[0], "train", "first", "the first model", model, model, outcome="passed"
    )
    steps = [first]
    for last, as_of in pairwise(moments):
        if policy == "monthly" and as_of.month == last.month:
            continue
        newest = history.newest(as_of)
        verdict: Verdict | None = None
        trained: datetime | None = None
        outcome: Outcome | None = None
        if policy in ("drift-triggered", "outcome-triggered"):
            verdict, findings = history.monitor(model, policy, as_of)
            decision = decide(
                _inputs(steps, as_of, verdict, findings, newest, cooldown)
            )
        elif policy == "frozen":
            decision = Decision("nothing", "frozen", "")
        elif newest not in {step.trained for step in steps}:
            decision = Decision("retrain", "schedule", policy)
        else:
            decision = Decision(
                "nothing", "nothing_new", "no snapshot has matured since"
            )
        if decision.action == "retrain":
            trained, outcome = newest, history.compare(newest, model)
            model = model if outcome == "refused" else newest
        what = (decision.action, decision.rule, decision.reason)
        steps.append(Step(as_of, *what, trained, model, verdict, outcome))
    return tuple(steps)


def _inputs(
    steps: Sequence[Step],
    as_of: datetime,
    verdict: Verdict,
    findings: Sequence[str],
    newest: datetime,
    cooldown: timedelta,
) -> Inputs:
    model = steps[-1].serves
    since = [step for step in steps if step.serves == model and step.trained != model]
    retrained = [step for step in steps[1:] if step.trained]
    answers = [(before.serves, step.trained) for before, step in pairwise(steps)]
    return Inputs(
        as_of=as_of,
        version=f"{model:%Y-%m-%d}",
        verdicts=(*(step.verdict for step in since if step.verdict), verdict),
        findings=tuple(findings),
        harm=None,
        previous=None,
        cause=f"{model:%Y-%m-%d}, labels up to {newest:%Y-%m-%d}",
        answered=(model, newest) in answers,
        last_retraining=retrained[-1].as_of if retrained else None,
        cooldown=cooldown,
        learnable=newest not in {step.trained for step in steps},
    )


def serving(steps: Sequence[Step], at: datetime) -> datetime:
    """Name the model that serves at `at`, which is not before the first step."""
    return next(step.serves for step in reversed(steps) if step.as_of <= at)


def alarms(
    steps: Sequence[Step],
    known: Mapping[datetime, datetime],
    loss: Callable[[datetime, datetime], float],
) -> Alarms:
    """Judge each retraining on the next snapshot to mature: neither model has seen its labels.

    known: snapshots, and when their labels are known. loss: of a model on a snapshot.
    """
    false = unknown = 0
    retrainings = [
        (before.serves, step) for before, step in pairwise(steps) if step.trained
    ]
    for champion, step in retrainings:
        ahead = min(
            (month for month, at in known.items() if at > step.as_of), default=None
        )
        if ahead is None:
            unknown += 1
        elif step.trained and loss(step.trained, ahead) >= loss(champion, ahead):
            false += 1
    return Alarms(len(retrainings), false, unknown)

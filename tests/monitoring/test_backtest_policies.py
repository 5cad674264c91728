"""What a policy does and what came of it, on small tables of months."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from monitoring.backtest.policies import (
    POLICIES,
    Alarms,
    Step,
    alarms,
    serving,
    walk,
)
from training.snapshots import starts

WAIT = timedelta(days=92)
START = datetime(2026, 4, 3, tzinfo=UTC)
WEEKS = tuple(START + n * timedelta(weeks=1) for n in range(20))
JAN, FEB, MAR, APR, MAY = (datetime(2026, n, 1, tzinfo=UTC) for n in range(1, 6))


@dataclass(frozen=True)
class Months:
    """bad: monitoring runs that find something, by moment. refused: challengers."""

    bad: frozenset[datetime] = frozenset()
    refused: frozenset[datetime] = frozenset()
    asked: list[tuple[datetime, datetime]] = field(default_factory=list)

    def newest(self, as_of):
        return starts("month", datetime(2025, 12, 1, tzinfo=UTC), as_of - WAIT)[-1]

    def monitor(self, _, policy, as_of):
        return ("bad", [f"{policy} at {as_of}"]) if as_of in self.bad else ("ok", [])

    def compare(self, challenger, champion):
        self.asked.append((challenger, champion))
        return "refused" if challenger in self.refused else "passed"


def trainings(name, world=None):
    assert name in POLICIES
    steps = walk(name, WEEKS, world or Months(), timedelta(hours=24))
    return steps, [(step.as_of, step.trained) for step in steps[1:] if step.trained]


def test_a_frozen_model_serves_for_ever():
    steps, trained = trainings("frozen")
    assert (trained, {step.serves for step in steps}) == ([], {JAN})
    assert {step.action for step in steps[1:]} == {"nothing"}


def test_a_schedule_trains_where_a_label_matured_since_and_only_there():
    steps, weekly = trainings("weekly")
    # 1 February and 92 days is 4 May; the next Friday is the 8th.
    assert weekly[:2] == [(datetime(2026, 5, 8, tzinfo=UTC), FEB), (WEEKS[9], MAR)]
    assert [step.rule for step in steps[1:5]] == ["nothing_new"] * 4
    # On 1 May those of 1 February are three days from known; the next month begins on 5 June.
    assert trainings("monthly")[1] == [
        (WEEKS[9], MAR),
        (WEEKS[13], APR),
        (WEEKS[18], MAY),
    ]


def test_a_drift_waits_for_a_second_window_and_then_for_something_to_learn():
    steps, trained = trainings("drift-triggered", Months(bad=frozenset(WEEKS[1:])))
    assert [step.rule for step in steps[1:6]] == [
        "first_bad_window", "parked", "parked", "parked", "drift",
    ]  # fmt: skip
    assert trained[0] == (WEEKS[5], FEB)
    assert (
        next(step.as_of for step in steps[1:] if step.action != "nothing") == WEEKS[2]
    )
    # The new version's own windows count from its promotion on.
    assert [step.rule for step in steps[6:8]] == ["first_bad_window", "parked"]
    assert serving(steps, WEEKS[5] - timedelta(seconds=1)) == JAN
    assert serving(steps, WEEKS[5]) == FEB


def test_a_refused_challenger_is_a_training_that_replaces_nobody_and_is_not_made_again():
    world = Months(bad=frozenset(WEEKS[5:9]), refused=frozenset({FEB}))
    steps, trained = trainings("outcome-triggered", world)
    assert trained == [(WEEKS[6], FEB)]
    assert world.asked == [(FEB, JAN)]
    assert steps[-1].serves == JAN
    assert [step.rule for step in steps[6:10]] == [
        "drift",
        "answered",
        "answered",
        "ok",
    ]


def stepped(*trained: tuple[datetime, datetime]) -> tuple[Step, ...]:
    first = Step(START, "train", "first", "", JAN, JAN)
    return (
        first,
        *(Step(at, "retrain", "drift", "", made, made) for at, made in trained),
    )


@pytest.mark.parametrize(
    ("retrainings", "expected"),
    [
        ((), Alarms(0, 0, 0)),
        (
            ((WEEKS[5], FEB),),
            Alarms(1, 0, 0),
        ),  # on March, which matures next: 0.60 against 0.65
        (((WEEKS[9], MAR),), Alarms(1, 1, 0)),  # on April: 0.66 against 0.65
        (
            ((WEEKS[5], FEB), (WEEKS[9], MAR)),
            Alarms(2, 1, 0),
        ),  # equal is no better: 0.66
        (((WEEKS[14], APR),), Alarms(1, 0, 1)),  # May is not known by the end
    ],
)
def test_a_retraining_no_better_on_the_next_month_to_mature_was_a_false_alarm(
    retrainings, expected
):
    losses = {
        JAN: {JAN: 0.5, FEB: 0.6, MAR: 0.65, APR: 0.65},
        FEB: {JAN: 0.5, FEB: 0.7, MAR: 0.60, APR: 0.66},
        MAR: {JAN: 0.5, FEB: 0.5, MAR: 0.50, APR: 0.66},
        APR: {JAN: 0.5, FEB: 0.5, MAR: 0.50, APR: 0.50},
    }
    known = {month: month + WAIT for month in losses}
    found = alarms(
        stepped(*retrainings), known, lambda model, month: losses[model][month]
    )
    assert found == expected

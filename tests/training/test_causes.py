"""What a training that Airflow starts is about; decisions are the monitor's, runs are real."""

from contextlib import closing
from datetime import timedelta

import pytest

from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.rules import last_applied
from mlflow_server.roles import PRODUCTION
from monitoring.decisions.causes import TrainingCause, open_decisions, training_cause
from monitoring.decisions.store import DecisionRow, store_decision
from tests.support.training.chains import open_run
from tests.training.conftest import OLD, SPEC
from training.runs import fail_run

HOUR = timedelta(hours=1)
CAUSED = SPEC.model_copy(update={"name": "caused", "experiment": "caused"})
ANSWERED = CAUSED.model_copy(update={"experiment": "answered"})


@pytest.fixture
def decisions(tracked):
    """Decisions to retrain, an hour and two hours after OLD."""
    for hours in (1, 2):
        row = DecisionRow(
            CAUSED.name, "1", OLD + hours * HOUR, "bad", "retrain", "drift", "PSI 0.3",
            f"drift {hours}", "bad: PSI 0.3", "{}", 900,
        )  # fmt: skip
        store_decision(tracked, row)


def cause_after(hours, reason):
    time = OLD + hours * HOUR
    words = f"drift {hours}, decided {time:%Y-%m-%d %H:%M:%S}"
    return TrainingCause(time, reason, words)


def start_run(settings, key, hours, spec=CAUSED, **more):
    return open_run(settings, spec, OLD + hours * HOUR, key, force=True, **more)


def test_a_training_answers_every_open_decision(tracked, tracking, decisions):
    start = OLD + 3 * HOUR
    expected = cause_after(2, "drift 1: PSI 0.3; drift 2: PSI 0.3")
    assert training_cause(tracked, CAUSED, start, None) == expected
    expected = cause_after(1, "drift 1: PSI 0.3")
    assert training_cause(tracked, CAUSED, start, OLD + HOUR) == expected

    start_run(tracked, "earlier", 1)
    (row,) = open_decisions(tracked, CAUSED, start)
    assert row.cause == "drift 2"
    tracking.end(start_run(tracked, "finished", 1))
    assert open_decisions(tracked, CAUSED, start) == [], "that run has learnt it all"

    start_run(tracked, "later", 2)
    fail_run(tracked, CAUSED, "later")  # the cooldown repeats it
    assert training_cause(tracked, CAUSED, start, None) == TrainingCause(start)


def test_a_training_is_never_older_than_the_newest_promotion(tracked, second):
    start = OLD - timedelta(days=40_000)
    with closing(Ledger(tracked)) as ledger:
        row = last_applied(ledger.rows(SPEC.name), PRODUCTION)
    assert training_cause(tracked, SPEC, start, None) == TrainingCause(row.time)
    assert training_cause(tracked, SPEC, start, start) == TrainingCause(start)


def test_a_cause_is_answered_by_a_running_or_finished_retraining(tracked, tracking):
    def answer(hours):
        cause = "drift of y"
        return start_run(tracked, f"y {hours}", hours, ANSWERED, cause=cause)

    assert answer(0)
    assert answer(12) is None
    fail_run(tracked, ANSWERED, "y 0")
    tracking.end(answer(13))
    fail_run(tracked, ANSWERED, "y 13")  # too late: it has finished
    assert answer(14) is None

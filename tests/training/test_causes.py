"""What a training that Airflow starts is about; decisions are the monitor's, runs are real."""

from contextlib import closing
from datetime import timedelta

import pytest

from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.registry import Registry
from monitoring.causes import TrainingCause, open_decisions, training_cause
from monitoring.decision_log import DecisionRow, store_decision
from tests.mlflow_server.conftest import client
from tests.training.chains import open_run
from tests.training.conftest import OLD, SPEC
from training.validate import fail_run

HOUR = timedelta(hours=1)
CAUSED = SPEC.model_copy(update={"name": "caused", "experiment": "caused"})


@pytest.fixture
def decisions(tracked):
    """Decisions to retrain, an hour and two hours after OLD."""
    for hours in (1, 2):
        row = DecisionRow(
            model=CAUSED.name,
            version="1",
            as_of=OLD + hours * HOUR,
            verdict="bad",
            action="retrain",
            rule="drift",
            reason="PSI 0.3",
            cause=f"drift {hours}",
            words="bad: PSI 0.3",
            inputs="{}",
            entities=900,
        )
        store_decision(tracked, row)


def cause_after(hours, reason):
    time = OLD + hours * HOUR
    words = f"drift {hours}, decided {time:%Y-%m-%d %H:%M:%S}"
    return TrainingCause(time, reason, words)


def start_run(settings, key, hours):
    return open_run(settings, CAUSED, OLD + hours * HOUR, key, force=True)


def test_a_training_answers_every_open_decision(tracked, tracking, decisions):
    start = OLD + 3 * HOUR
    expected = cause_after(2, "drift 1: PSI 0.3; drift 2: PSI 0.3")
    assert training_cause(tracked, CAUSED, start, None) == expected
    expected = cause_after(1, "drift 1: PSI 0.3")
    assert training_cause(tracked, CAUSED, start, OLD + HOUR) == expected

    start_run(tracked, "earlier", 1)
    (row,) = open_decisions(tracked, CAUSED, start)
    assert row.cause == "drift 2"
    tracking.set_terminated(start_run(tracked, "finished", 1))
    assert open_decisions(tracked, CAUSED, start) == [], "that run has learnt it all"

    start_run(tracked, "later", 2)
    fail_run(tracked, CAUSED, "later")  # the cooldown repeats it
    assert training_cause(tracked, CAUSED, start, None) == TrainingCause(start)


def test_a_training_is_never_older_than_the_newest_promotion(tracked):
    api = client(tracked)
    start = OLD - timedelta(days=40_000)
    run = api.create_run("0").info
    api.create_registered_model(CAUSED.name)
    api.create_model_version(CAUSED.name, f"{run.artifact_uri}/model", run.run_id)
    with closing(Ledger(tracked)) as ledger:
        row = promote(Registry(tracked), ledger, CAUSED.name, "1", who="t", why="r")
    assert training_cause(tracked, CAUSED, start, None) == TrainingCause(row.time)
    assert training_cause(tracked, CAUSED, start, start) == TrainingCause(start)

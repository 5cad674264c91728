"""A search: each trial is a run below its training run, and the same again after a kill."""

import pytest

from core.spec.training import Search
from mlflow_server.tags import PARENT_TAG, tag_equals
from tests.conftest import AS_OF
from tests.support.training.chains import open_run
from tests.training.conftest import SPEC as MODEL
from training.model.search import search
from training.stages.dataset import dataset
from training.stages.train import fit

TRIALS = 4
NAME = "to_be_searched"
BUDGET = Search(trials=TRIALS, minutes=60)
SPEC = MODEL.model_copy(update={"name": NAME, "experiment": NAME, "search": BUDGET})


def slope(estimator):
    """Stand for the folds: any pure function of the parameters is a landscape to search."""
    return {"log_loss": estimator.parameters.get("learning_rate", 2.0)}


def trials_of(tracking, run_id):
    """Runs below a training run, oldest first."""
    return tracking.runs(NAME, tag_equals(PARENT_TAG, run_id))[::-1]


def start_run(tracking, key):
    return tracking.start_or_find_run(NAME, key, key, {})


def test_a_search_tries_the_parameters_of_the_spec_first_and_takes_the_best_trial(
    tracked, tracking
):
    run_id = open_run(tracked, SPEC, AS_OF, "searched")
    dataset(tracked, SPEC, run_id)
    fit(tracked, SPEC, run_id)
    trials = trials_of(tracking, run_id)
    assert len(trials) == TRIALS
    of_spec = []
    for estimator in SPEC.estimators:
        parameters = {name: str(v) for name, v in estimator.parameters.items()}
        of_spec.append({"estimator": estimator.name} | parameters)
    assert [trial.params for trial in trials[:3]] == of_spec
    assert trials[3].params not in of_spec
    best = min(trials, key=lambda trial: trial.metrics["fold/log_loss"])
    run = tracking.run(run_id)
    assert run.params["estimator"] == best.params["estimator"]
    words = f"search of {TRIALS} trials on forward folds, log loss"
    assert run.params["chosen_by"] == words


def test_a_killed_and_repeated_search_tries_the_same_parameters(tracking):
    estimators = []

    def dies(estimator):
        estimators.append(estimator)
        if len(estimators) == TRIALS:
            raise KeyboardInterrupt
        return slope(estimator)

    run_id = start_run(tracking, "killed")
    with pytest.raises(KeyboardInterrupt):
        search(tracking, SPEC, BUDGET, run_id, dies)
    statuses = [trial.status for trial in trials_of(tracking, run_id)]
    assert statuses == ["FINISHED"] * (TRIALS - 1) + ["FAILED"]
    trials = search(tracking, SPEC, BUDGET, run_id, slope)
    assert [estimator for _, estimator in trials] == estimators
    statuses = [trial.status for trial in trials_of(tracking, run_id)]
    assert statuses == ["FINISHED"] * TRIALS


def test_a_search_stops_after_its_minutes_and_stays_within_its_spaces(tracking):
    budget = Search(trials=50, minutes=1e-9)
    trials = search(tracking, SPEC, budget, start_run(tracking, "short"), slope)
    assert len(trials) == 3
    budget = Search(trials=12, minutes=60)
    trials = search(tracking, SPEC, budget, start_run(tracking, "long"), slope)
    assert len(trials) == 12
    for _, estimator in trials:
        for name, bounds in estimator.space.items():
            assert bounds.low <= estimator.parameters[name] <= bounds.high
    losses = [metrics["log_loss"] for metrics, _ in trials]
    assert min(losses) < 0.05  # that of the spec, towards the lower bound 0.01

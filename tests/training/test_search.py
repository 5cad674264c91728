"""A search: each trial is a run below its training run, and the same again after a kill."""

from __future__ import annotations

import pytest

from core.training_spec import Search
from mlflow_server.tracking import PARENT_TAG, Tracking, tag_equals
from tests.conftest import AS_OF
from tests.training.conftest import SPEC as MODEL
from tests.training.conftest import run_stages
from training import chain
from training.search import search

TRIALS = 4
NAME = "to_be_searched"
BUDGET = Search(trials=TRIALS, minutes=60)
SPEC = MODEL.model_copy(update={"name": NAME, "experiment": NAME, "search": BUDGET})


def slope(estimator) -> float:
    """Stand for the folds: any pure function of the parameters is a landscape to search."""
    return estimator.parameters.get("learning_rate", 2.0)


def trials_of(settings, run_id):
    return Tracking(settings).runs(NAME, tag_equals(PARENT_TAG, run_id))


def start_run(settings, key):
    return Tracking(settings).start_or_find_run(NAME, key, key, {})


def test_a_search_tries_the_parameters_of_the_spec_first_and_takes_the_best_trial(
    tracked,
):
    run_id = chain.open_run(tracked, SPEC, AS_OF, key="searched", reason="r", who="t")
    run_stages(tracked, SPEC, run_id, "dataset", "train")
    trials = trials_of(tracked, run_id)[::-1]
    assert [trial.status for trial in trials] == ["FINISHED"] * TRIALS
    of_spec = []
    for estimator in SPEC.estimators:
        parameters = {name: str(v) for name, v in estimator.parameters.items()}
        of_spec.append({"estimator": estimator.name} | parameters)
    assert [trial.params for trial in trials[:3]] == of_spec
    assert trials[3].params not in of_spec
    best = min(trials, key=lambda trial: trial.metrics["fold/log_loss"])
    run = Tracking(tracked).run(run_id)
    assert run.params["estimator"] == best.params["estimator"]
    words = f"search of {TRIALS} trials on forward folds, log loss"
    assert run.params["chosen_by"] == words


def test_a_search_that_was_killed_and_repeated_tries_the_same(tracked):
    estimators = []

    def dies(estimator) -> float:
        estimators.append(estimator)
        if len(estimators) == TRIALS:
            raise KeyboardInterrupt
        return slope(estimator)

    tracking = Tracking(tracked)
    run_id = start_run(tracked, "killed")
    with pytest.raises(KeyboardInterrupt):
        search(tracking, SPEC, BUDGET, run_id, dies)
    statuses = [trial.status for trial in trials_of(tracked, run_id)]
    assert sorted(statuses) == ["FAILED"] + ["FINISHED"] * (TRIALS - 1)
    trials = search(tracking, SPEC, BUDGET, run_id, slope)
    assert [estimator for _, estimator in trials] == estimators
    statuses = [trial.status for trial in trials_of(tracked, run_id)]
    assert statuses == ["FINISHED"] * TRIALS


def test_a_search_ends_with_its_minutes_and_stays_within_its_spaces(tracked):
    tracking = Tracking(tracked)
    budget = Search(trials=50, minutes=1e-9)
    trials = search(tracking, SPEC, budget, start_run(tracked, "short"), slope)
    assert len(trials) == 3
    budget = Search(trials=12, minutes=60)
    trials = search(tracking, SPEC, budget, start_run(tracked, "long"), slope)
    assert len(trials) == 12
    for _, estimator in trials:
        for name, bounds in estimator.space.items():
            assert bounds.low <= estimator.parameters[name] <= bounds.high
            assert type(estimator.parameters[name]) is type(bounds.low)
    losses = [loss for loss, _ in trials]
    assert min(losses) < 0.05  # that of the spec, towards the lower bound 0.01

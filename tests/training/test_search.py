"""A search: each trial a run below its training run, the same again after a kill."""

from __future__ import annotations

import pytest

from core.errors import SettingsError
from core.training_spec import Search
from mlflow_server.tracking import PARENT_TAG, Tracking, tag_equals
from tests.conftest import AS_OF
from tests.training.conftest import OLD, run_stages
from tests.training.conftest import SPEC as MODEL
from training import chain
from training.search import search

TRIALS = 5
NAME = "to_be_searched"
SPEC = MODEL.model_copy(
    update={
        "name": NAME,
        "experiment": NAME,
        "search": Search(trials=TRIALS, minutes=60),
    }
)
BUDGET = SPEC.search


def slope(estimator) -> float:
    """Stand for the folds: any pure function of the parameters is a landscape to search."""
    return estimator.parameters.get("learning_rate", 2.0)


@pytest.fixture(scope="module")
def searched(tracked) -> str:
    """A run whose estimator was searched for on the real folds."""
    run_id = chain.open_run(tracked, SPEC, AS_OF, key="searched", reason="r", who="t")
    run_stages(tracked, SPEC, run_id, "dataset", "train")
    return run_id


def test_each_trial_is_a_run_below_and_the_specs_own_parameters_come_first(
    tracked, searched
):
    tracking = Tracking(tracked)
    trials = tracking.runs(NAME, tag_equals(PARENT_TAG, searched))[::-1]
    assert [run.status for run in trials] == ["FINISHED"] * TRIALS
    own = [{"estimator": e.name} | {k: str(v) for k, v in e.parameters.items()}
           for e in SPEC.estimators]  # fmt: skip
    assert [run.params for run in trials[:3]] == own
    assert all(run.params not in own for run in trials[3:])
    best = min(trials, key=lambda run: run.metrics["fold/log_loss"])
    chosen = tracking.run(searched)
    assert chosen.params["estimator"] == best.params["estimator"]
    assert (
        chosen.params["chosen_by"]
        == f"search of {TRIALS} trials on forward folds, log loss"
    )
    name = f"fold/log_loss_{best.params['estimator']}"
    assert chosen.metrics[name] == best.metrics["fold/log_loss"]


def test_a_search_that_was_killed_and_repeated_tries_the_same(tracked, searched):
    tracking = Tracking(tracked)
    runs = tracking.runs(NAME, tag_equals(PARENT_TAG, searched))
    run_stages(tracked, SPEC, searched, "train")
    assert tracking.runs(NAME, tag_equals(PARENT_TAG, searched)) == runs
    tried = []

    def dies(estimator) -> float:
        tried.append(estimator)
        if len(tried) == TRIALS:
            raise KeyboardInterrupt
        return slope(estimator)

    run_id = tracking.start_or_find_run(NAME, "killed", "killed", {})
    with pytest.raises(KeyboardInterrupt):
        search(tracking, SPEC, BUDGET, run_id, dies)
    statuses = [r.status for r in tracking.runs(NAME, tag_equals(PARENT_TAG, run_id))]
    assert sorted(statuses) == ["FAILED"] + ["FINISHED"] * (TRIALS - 1)
    trials = search(tracking, SPEC, BUDGET, run_id, slope)
    assert [estimator for _, estimator in trials] == tried
    statuses = [r.status for r in tracking.runs(NAME, tag_equals(PARENT_TAG, run_id))]
    assert statuses == ["FINISHED"] * TRIALS


def test_a_search_ends_with_its_minutes_and_stays_within_its_spaces(tracked):
    tracking = Tracking(tracked)
    run_id = tracking.start_or_find_run(NAME, "short", "short", {})
    assert (
        len(search(tracking, SPEC, Search(trials=50, minutes=1e-9), run_id, slope)) == 3
    )
    run_id = tracking.start_or_find_run(NAME, "long", "long", {})
    found = search(tracking, SPEC, Search(trials=25, minutes=60), run_id, slope)
    assert len(found) == 25
    for _, estimator in found:
        for key, bounds in estimator.space.items():
            assert bounds.low <= estimator.parameters[key] <= bounds.high
            assert type(estimator.parameters[key]) is type(bounds.low)
    assert min(found)[0] < 0.02  # towards the lower bound 0.01, from 0.05


def test_without_folds_the_search_says_so_and_the_specs_first_is_trained(
    tracked, caplog
):
    caplog.set_level("INFO", "training")
    run_id = chain.open_run(
        tracked, SPEC, OLD, key="short history", reason="r", who="t"
    )
    run_stages(tracked, SPEC, run_id, "dataset", "train")
    said = "chosen: random_forest; first of the spec: no folds; a search needs forward folds"
    assert said in caplog.messages
    assert Tracking(tracked).runs(NAME, tag_equals(PARENT_TAG, run_id)) == []


def test_a_space_that_is_no_parameter_is_named_before_a_run_begins(tracked):
    forest = SPEC.estimators[0]
    wrong = forest.model_copy(update={"space": {"depth": forest.space["max_depth"]}})
    spec = SPEC.model_copy(update={"estimators": (wrong,), "experiment": "never begun"})
    expected = r"to_be_searched\.toml: estimators\.0: .* out of .*max_depth.*'depth'"
    with pytest.raises(SettingsError, match=expected):
        chain.open_run(tracked, spec, AS_OF, key="wrong", reason="r", who="t")
    assert Tracking(tracked).runs("never begun") == []

"""A version is built again from what its run stored: the same, or the reason why not."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from core.errors import RegistryError
from core.training_spec import Estimator
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from tests.mlflow_server.conftest import client
from tests.training.conftest import OLD, SPEC, run_stages
from training import chain
from training.artifacts import ESTIMATOR, read
from training.reproduce import reproduce

BOOSTING = {"n_estimators": 20, "learning_rate": 0.1}
FOREST, *OTHERS = SPEC.estimators
OTHERS += [
    Estimator(name="xgboost", type="xgboost", parameters=BOOSTING | {"max_depth": 4}),
    Estimator(
        name="lightgbm", type="lightgbm", parameters=BOOSTING | {"num_leaves": 15}
    ),
]


@pytest.fixture(scope="module")
def version_of(tracked, first):
    """The model and the version of an estimator."""

    @cache
    def trained(estimator: str) -> tuple[str, str]:
        if estimator == FOREST.type:
            return SPEC.name, first.version
        made = next(each for each in OTHERS if each.type == estimator)
        own = {"name": "to_be_built_again", "experiment": "to_be_built_again"}
        spec = SPEC.model_copy(update=own | {"estimators": (made,)})
        run_id = chain.open_run(tracked, spec, OLD, key=made.name, reason="r", who="t")
        run_stages(tracked, spec, run_id, "dataset", "train", "evaluate")
        return spec.name, run_stages(tracked, spec, run_id, "register")

    return trained


def differences(report) -> set[str]:
    changed_results = {name for name, text in report.results.items() if text}
    return {*report.inputs} | changed_results


@pytest.mark.parametrize(
    "estimator",
    [
        "random_forest",
        "hist_gradient_boosting",
        *(
            pytest.param(kind, marks=pytest.mark.nightly)
            for kind in ("logistic_regression", "xgboost", "lightgbm")
        ),
    ],
)
def test_every_estimator_is_the_same_to_the_byte(tracked, version_of, estimator):
    name, version = version_of(estimator)
    before = sorted(
        path for path in tracked.home.rglob("*") if "mlflow" not in str(path)
    )
    report = reproduce(tracked, name, version)
    assert report.reproduced, report.summary()
    assert (differences(report), report.largest_difference) == (set(), 0)
    assert {"model.onnx", "serving.json"} < set(report.results)
    assert (
        sorted(p for p in tracked.home.rglob("*") if "mlflow" not in str(p)) == before
    )


def test_the_threshold_that_was_chosen_on_a_fold_is_chosen_again(tracked, second):
    report = reproduce(tracked, SPEC.name, second.version)
    assert (report.reproduced, differences(report)) == (True, set()), report.summary()


def test_an_estimator_that_is_another_is_a_difference_of_what_came_of_it(
    tracked, first
):
    name, version = SPEC.name, first.version
    run_id, api = Registry(tracked).version(name, version).run_id, client(tracked)
    stored = read(Tracking(tracked), run_id, ESTIMATOR)
    other = json.loads(stored)
    other["parameters"] |= {"n_estimators": 5}
    api.log_text(run_id, json.dumps(other), ESTIMATOR)
    try:
        report = reproduce(tracked, name, version)
    finally:
        api.log_text(run_id, stored.decode(), ESTIMATOR)
    assert not report.reproduced
    assert {"model.onnx"} < differences(report)
    assert report.largest_difference > 0
    assert "because: nothing it was made of differs" in report.summary()


def test_what_differs_is_named_and_alone_is_no_verdict(tracked, first):
    """Another lock file, code and spec than the version names."""
    name, version = SPEC.name, first.version
    api, tags = client(tracked), Registry(tracked).version(name, version).tags
    hashes = ("lock_sha256", "code_sha256")
    for tag in hashes:
        api.set_model_version_tag(name, version, tag, "0" * 64)
    run_id = api.get_model_version(name, version).run_id
    stored = read(Tracking(tracked), run_id, "spec.json")
    spec = SPEC.model_copy(update={"schedule": "@daily"})
    try:
        api.log_text(run_id, spec.model_dump_json(), "spec.json")
        report = reproduce(tracked, name, version)
    finally:
        api.log_text(run_id, stored.decode(), "spec.json")
        for tag in hashes:
            api.set_model_version_tag(name, version, tag, tags[tag])
    assert report.reproduced
    for tag in ("code_sha256", "lock_sha256", "spec_sha256"):
        assert re.search(
            f"without effect: {tag}: registered .*, now ", report.summary()
        )
    api.log_text(run_id, "{}", "spec.json")
    try:
        with pytest.raises(
            RegistryError, match="stored spec is none that this code knows"
        ):
            reproduce(tracked, name, version)
    finally:
        api.log_text(run_id, stored.decode(), "spec.json")

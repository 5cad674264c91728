"""Estimators and training code of a user, through the whole chain on the real history."""

from __future__ import annotations

import json

import numpy as np
import pytest

from core.errors import TrainingError
from core.spec import ModelSpec, load_spec
from mlflow_server.pyfunc import read_version
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from tests.conftest import AS_OF
from tests.training import factories
from tests.training.conftest import OLD, run_stages
from training import chain
from training.artifacts import PROOF, read
from training.dataset import load_frame
from training.estimators import estimator_problems
from training.frame import at, features
from training.reproduce import reproduce
from training.scoring import version_scores

NAME, OWN = "own_model", "tests.training.factories"
SHIPPED = load_spec("customer_churn_model").model_dump(exclude={"estimators"})
GATE = {"metric": "log_loss", "rule": "better_than_baseline"}
FEW = {"feature": "days_since_last_order", "below": 15}
"""In the format of a library each member takes long: its latency, and what moves its score."""


def spec_of(**more) -> ModelSpec:
    own = {"name": NAME, "experiment": NAME, "gates": [GATE], "population": FEW}
    return ModelSpec.model_validate(SHIPPED | own | more)


def by_function(name, **parameters):
    return spec_of(training={"function": f"{OWN}:{name}", "parameters": parameters})


def by_factory(name):
    return spec_of(estimators=[{"name": "mine", "type": f"{OWN}:{name}"}])


def train(settings, spec, key, as_of=AS_OF):
    return chain.train(
        settings, spec, as_of, key=key, reason=key, who="test", force=True
    )


@pytest.fixture(scope="module")
def trained(tracked):
    factories.calls.clear()
    return train(tracked, by_function("train", leaves=[3, 15]), "own training")


def test_training_code_sees_the_purged_rows_and_no_test_row(tracked, trained):
    _, plan = load_frame(Tracking(tracked), trained.run_id)
    (rows, folds, parameters) = factories.calls[0]
    spec = by_function("train", leaves=[3, 15])
    assert rows.columns.tolist() == [*spec.features, "label"]
    assert rows.index.names == ["customer_id", "event_timestamp"]
    assert set(rows.index.get_level_values(1)) == {each.start for each in plan.train}
    assert len(folds) == len(plan.folds) > 0
    for (before, validation), fold in zip(folds, plan.folds, strict=True):
        assert set(before.index.get_level_values(1)) == {
            each.start for each in fold.train
        }
        assert set(validation.index.get_level_values(1)) == {
            each.start for each in fold.validation
        }
        assert fold.validation[-1] < plan.test[0]
    assert parameters == {
        "seed": spec.seed,
        "features": spec.features,
        "leaves": [3, 15],
    }


def test_what_it_returns_is_registered_with_its_figures_and_built_again(
    tracked, trained
):
    run = Tracking(tracked).run(trained.run_id)
    assert (
        trained.outcome == f"version {trained.version} is in production, the first one"
    )
    assert run.params["estimator"] == f"{OWN}:train"
    assert run.params["threshold"] == "0.25"
    assert run.params["chosen_by"] == "training code of its own"
    assert run.metrics["training/leaves"] in {3, 15}
    assert run.metrics["test/log_loss"] < run.metrics["baseline/log_loss"]
    spec = by_function("train", leaves=[3, 15])
    frame, plan = load_frame(Tracking(tracked), trained.run_id)
    rows = at(frame, plan.test)
    served = version_scores(tracked, spec, trained.version, rows)
    model, _ = factories.train(*factories.calls[0])
    expected = model.predict_proba(features(spec, rows))[:, 1]
    assert served.threshold == 0.25
    assert np.abs(served.scores - expected).max() < 1e-6
    again = reproduce(tracked, NAME, trained.version)
    assert again.reproduced, again.summary()
    assert json.loads(read(Tracking(tracked), trained.run_id, PROOF))["passed"]


def test_a_model_that_onnx_scores_otherwise_is_refused_with_what_to_do(
    tracked, trained
):
    report = train(tracked, by_factory("xgboost_behind_a_scaler"), "scaler", OLD)
    assert report.version is None
    assert (
        "what is served scores not as what was fitted: real: largest" in report.outcome
    )
    assert report.outcome.endswith("docs/how-to/own-model.md")
    assert Registry(tracked).production(NAME) == trained.version


NATIVE = {"missing_features": "refuse", "format": "native"}
TRUSTED = ["xgboost.core.Booster", "xgboost.sklearn.XGBClassifier"]


def native(name, trusted=()):
    serving = NATIVE | {"trusted_types": trusted}
    own = {
        "estimators": [{"name": "mine", "type": f"{OWN}:{name}"}],
        "serving": serving,
    }
    return spec_of(**own, gates=[{"metric": "auc", "rule": "at_least", "value": 0.5}])


def test_in_the_format_of_its_library_it_is_promoted_and_built_again(tracked, trained):
    spec = native("xgboost_behind_a_scaler", TRUSTED)
    report = train(tracked, spec, "native")
    assert report.version is not None, report.outcome
    registry = Registry(tracked)
    served, _ = read_version(registry, registry.version(NAME, report.version))
    assert served.loader == "mlflow.sklearn"
    proof = json.loads(read(Tracking(tracked), report.run_id, PROOF))
    assert (proof["passed"], proof["largest_difference"]) == (True, 0.0)
    again = reproduce(tracked, NAME, report.version)
    assert again.reproduced, again.summary()
    assert again.largest_difference == 0.0


@pytest.fixture(scope="module")
def opened(tracked):
    """A run with its frame."""
    spec = by_factory("Texts")
    run_id = chain.open_run(tracked, spec, OLD, key="opened", reason="r", who="t")
    run_stages(tracked, spec, run_id, "dataset")
    return run_id


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            by_factory("Texts"),
            r"expected the classes 0 and 1 .*found the classes \['no', 'yes'\]",
        ),
        (by_factory("Unknown"), "ONNX export of Unknown: .*docs/how-to/own-model.md"),
        (
            by_function("returns_no_figures"),
            "found a ColumnTransformer without predict_proba",
        ),
        (
            by_function("returns_a_regressor"),
            "object with predict_proba, found a StandardScaler",
        ),
        (
            native("xgboost_behind_a_scaler"),
            r"expected trusted_types = \['xgboost.core.Boo",
        ),
        (
            native("Unwritable"),
            "no data format for Pipeline: TypeError: cannot pickle 'gener",
        ),
        (by_function("train"), r"own_model: \[training\] .*KeyError: 'leaves'"),
    ],
    ids=["texts", "unknown", "figures", "regressor", "types", "format", "parameters"],
)
def test_what_cannot_be_served_ends_the_training_with_one_line(
    tracked, opened, spec, message
):
    assert [*estimator_problems(spec)] == []
    with pytest.raises(TrainingError, match=message) as refused:
        run_stages(tracked, spec, opened, "train")
    assert "\n" not in str(refused.value)

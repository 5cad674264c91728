"""What a spec's estimators become before they are fitted."""

import re

import pytest
from sklearn.pipeline import Pipeline

from core.spec.training import Estimator, Training
from tests.training.conftest import SHIPPED
from training.model.estimators import build_pipeline, estimator_problems

FEATURES = {"orders": "int64", "spend": "double", "segment": "string"}
FACTORIES = "tests.support.training.factories"


def pipeline_of(kind, **parameters):
    estimator = Estimator(name=kind, type=kind, parameters=parameters)
    spec = SHIPPED.model_copy(update={"features": FEATURES, "seed": 7})
    return build_pipeline(spec, estimator)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("logistic_regression", ["columns", "imputer", "scaler", "estimator"]),
        ("lightgbm:LGBMClassifier", ["columns", "estimator"]),
        (f"{FACTORIES}:xgboost_behind_a_scaler", ["scaled", "estimator"]),
    ],
)  # fmt: skip
def test_a_pipeline_is_used_unchanged_and_an_estimator_gets_column_steps(kind, steps):
    pipeline = pipeline_of(kind)
    assert [name for name, _ in pipeline.steps] == steps
    assert pipeline[-1].get_params()["random_state"] == 7


def test_a_factory_gets_the_parameters_and_the_other_arguments_of_its_signature():
    pipeline = pipeline_of(f"{FACTORIES}:lightgbm", leaves=5)
    assert (pipeline[-1].num_leaves, pipeline[-1].random_state) == (5, 7)
    assert pipeline_of("lightgbm", random_state=3)[-1].random_state == 3
    sigmoid = pipeline_of(f"{FACTORIES}:Sigmoid", feature="spend")
    assert not isinstance(sigmoid, Pipeline)


def mine(kind, **parameters):
    estimator = Estimator(name="mine", type=kind, parameters=parameters)
    return {"estimators": (SHIPPED.estimators[0], estimator)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (mine("subprocess:run", args="id"), "expected a module of .* found no subprocess/ and no"),
        (mine(f"{FACTORIES}:nothing"), "AttributeError: module .* has no attribute 'nothing'"),
        (mine(f"{FACTORIES}:calls"), "is not a callable object"),
        (mine(f"{FACTORIES}:lightgbm", leafs=4), "unexpected keyword argument 'leafs'"),
        (mine(f"{FACTORIES}:Unfitted"), "expected an object with fit and predict_proba, found a U"),
        ({"training": Training(function=f"{FACTORIES}:fails")},
         "expected a function of frame, folds, parameters: too many positional arguments"),
    ],
)  # fmt: skip
def test_code_that_cannot_be_called_is_reported_in_one_line_with_its_key(
    changes, message
):
    (line,) = estimator_problems(SHIPPED.model_copy(update=changes))
    place = r"customer_churn_model\.toml: (estimators\.1: mine|training\.function): "
    assert re.match(f"{place}.*{message}", line)
    assert "\n" not in line

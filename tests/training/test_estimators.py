"""What a spec's estimators become before they are fitted."""

import re

import pytest
from sklearn.pipeline import Pipeline

from core.training_spec import Estimator, Training
from tests.training.conftest import SHIPPED
from training.estimators import build_pipeline, estimator_problems
from training.lineage import code_hash

FEATURES = {"orders": "int64", "spend": "double", "segment": "string"}
FACTORIES = "tests.training.factories"


def pipeline_of(kind, **parameters):
    return build_pipeline(kind, parameters, FEATURES, 7, "classification")


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("logistic_regression", ["columns", "imputer", "scaler", "estimator"]),
        ("random_forest", ["columns", "imputer", "estimator"]),
        ("sklearn.linear_model:LogisticRegression", ["columns", "imputer", "estimator"]),
        ("xgboost", ["columns", "estimator"]),
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


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("subprocess:run", {"args": "id"}, "expected a module of .* found no subprocess/ and no"),
        (f"{FACTORIES}:nothing", {}, "AttributeError: module .* has no attribute 'nothing'"),
        (f"{FACTORIES}:calls", {}, "is not a callable object"),
        (f"{FACTORIES}:lightgbm", {"leafs": 4}, "unexpected keyword argument 'leafs'"),
        (f"{FACTORIES}:Unfitted", {}, "expected an object with fit and predict_proba, found a Unf"),
    ],
)  # fmt: skip
def test_an_estimator_that_cannot_be_trained_is_reported_in_one_line_with_its_key(
    kind, parameters, message
):
    wrong = Estimator(name="mine", type=kind, parameters=parameters)
    spec = SHIPPED.model_copy(update={"estimators": (SHIPPED.estimators[0], wrong)})
    (line,) = estimator_problems(spec)
    place = r"customer_churn_model\.toml: estimators\.1: mine: "
    assert re.match(f"{place}.*{message}", line)
    assert "\n" not in line


def test_training_code_that_cannot_be_called_is_reported_in_one_line():
    training = Training(function=f"{FACTORIES}:takes_two")
    (line,) = estimator_problems(SHIPPED.model_copy(update={"training": training}))
    place = r"\S+\.toml: training\.function: expected a function of frame, "
    assert re.match(f"{place}.*too many positional arguments", line)


def test_the_code_of_a_factory_or_a_training_function_is_hashed_with_the_version():
    training = Training(function=f"{FACTORIES}:train")
    factory = Estimator(name="mine", type=f"{FACTORIES}:lightgbm")
    by_function = SHIPPED.model_copy(update={"estimators": (), "training": training})
    by_factory = SHIPPED.model_copy(update={"estimators": (factory,)})
    assert code_hash(by_function) == code_hash(by_factory) != code_hash(SHIPPED)

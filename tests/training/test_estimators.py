"""What a spec's estimators become before they are fitted."""

from __future__ import annotations

import re

import pytest
from sklearn.pipeline import Pipeline

from core.spec import load_spec
from core.training_spec import Estimator, Training
from training.estimators import build_pipeline, estimator_problems
from training.lineage import code_hash

SPEC = load_spec("customer_churn_model")
FEATURES = {"orders": "int64", "spend": "double", "segment": "string"}
OWN = "tests.training.factories"


def built(kind, task="classification", **parameters):
    return build_pipeline(kind, parameters, FEATURES, 7, task)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("logistic_regression", ["columns", "imputer", "scaler", "estimator"]),
        ("random_forest", ["columns", "imputer", "estimator"]),
        (
            "sklearn.linear_model:LogisticRegression",
            ["columns", "imputer", "estimator"],
        ),
        ("xgboost", ["columns", "estimator"]),
        ("lightgbm", ["columns", "estimator"]),
        ("lightgbm:LGBMClassifier", ["columns", "estimator"]),
        (f"{OWN}:xgboost_on_scaled_columns", ["columns", "scaler", "estimator"]),
        (f"{OWN}:xgboost_behind_a_scaler", ["scaled", "estimator"]),
    ],
)
def test_a_pipeline_is_taken_as_it_is_and_an_estimator_is_put_behind_columns(
    kind, steps
):
    made = built(kind)
    assert [name for name, _ in made.steps] == steps
    assert made[-1].get_params()["random_state"] == 7


def test_a_factory_takes_the_parameters_and_what_else_it_asks_for():
    made = built(f"{OWN}:lightgbm", leaves=5)
    assert (made[-1].num_leaves, made[-1].random_state) == (5, 7)
    assert [name for name, _, _ in made[0].transformers] == [
        "int64",
        "double",
        "string",
    ]
    assert built("lightgbm", random_state=3)[-1].random_state == 3
    assert not isinstance(built(f"{OWN}:Sigmoid", feature="spend"), Pipeline)


def problems(*estimators, **more):
    return [
        *estimator_problems(SPEC.model_copy(update={"estimators": estimators} | more))
    ]


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (
            "subprocess:run",
            {"args": "id"},
            "expected a module of .* found no subprocess/ and no",
        ),
        (
            "tests.training.nothing:model",
            {},
            "ModuleNotFoundError: No module named 'tests.trai",
        ),
        (f"{OWN}:nothing", {}, "AttributeError: module .* has no attribute 'nothing'"),
        (f"{OWN}:calls", {}, "is not a callable object"),
        (f"{OWN}:lightgbm", {}, "missing 1 required positional argument: 'leaves'"),
        (f"{OWN}:lightgbm", {"leafs": 4}, "unexpected keyword argument 'leafs'"),
        (f"{OWN}:fails", {}, "KeyError: 'a table of mine'"),
        (
            f"{OWN}:Unfitted",
            {},
            "expected an object with fit and predict_proba, found a Unfitted",
        ),
        (
            "xgboost",
            {"depth": 4},
            r"parameters out of .*max_depth.*, found \['depth'\]; others",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_line_with_its_key(kind, parameters, message):
    wrong = Estimator(name="mine", type=kind, parameters=parameters)
    (line,) = problems(*SPEC.estimators[:1], wrong)
    assert re.match(
        rf"customer_churn_model\.toml: estimators\.1: mine: .*{message}", line
    )
    assert "\n" not in line


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("train", None),
        ("takes_two", "too many positional arguments"),
        ("calls", "is not a callable"),
        ("nothing", "has no attribute 'nothing'"),
    ],
)
def test_training_code_that_cannot_be_called_is_one_line(function, message):
    own = Training(function=f"{OWN}:{function}")
    found = problems(training=own)
    assert (
        (found == [])
        if message is None
        else re.match(
            rf"\S+\.toml: training\.function: expected a function of frame, .*{message}",
            found[0],
        )
    )


def test_the_code_of_a_factory_is_hashed_with_the_version(tmp_path):
    spec = SPEC.model_copy(
        update={"estimators": (), "training": Training(function=f"{OWN}:train")}
    )
    by_factory = SPEC.model_copy(
        update={"estimators": (Estimator(name="mine", type=f"{OWN}:lightgbm"),)}
    )
    assert code_hash(spec) == code_hash(by_factory) != code_hash(SPEC)

"""Exported models score as their scikit-learn pipelines do, and a wrong one is found out."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from core.settings import CLONE
from mlflow_server.pyfunc import ModelFile
from tests.preloaded import commands_folder
from training.estimators import build_pipeline
from training.onnx_export import Proof, export, prove
from training.scoring import score

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    from sklearn.pipeline import Pipeline

    from core.training_spec import Task

FEATURES = {
    "orders": "int64",
    "spend": "double",
    "segment": "string",
    "days": "int64",
    "value": "double",
}
PARAMETERS = {
    "logistic_regression": {"C": 1.0, "max_iter": 1000},
    "random_forest": {"n_estimators": 100, "max_depth": 8, "min_samples_leaf": 20},
    "hist_gradient_boosting": {
        "learning_rate": 0.05,
        "max_iter": 100,
        "max_leaf_nodes": 15,
    },
    "xgboost": {"learning_rate": 0.05, "n_estimators": 100, "max_depth": 4},
    "lightgbm": {"learning_rate": 0.05, "n_estimators": 100, "num_leaves": 15},
}
NUMBERS = {
    "ridge": {},
    "random_forest": {"n_estimators": 10, "max_depth": 8, "min_samples_leaf": 20},
    "hist_gradient_boosting": {"max_iter": 20, "max_leaf_nodes": 15},
    "xgboost": {"n_estimators": 20, "max_depth": 4},
    "lightgbm": {"n_estimators": 20, "num_leaves": 15},
}
OWN = "tests.training.factories"
ROWS = 7_000
KINDS = {"real", "permuted"}


def customers(rows: int = ROWS) -> tuple[pd.DataFrame, np.ndarray]:
    chance = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "orders": chance.poisson(2, rows),
            "spend": chance.exponential(60, rows).round(2),
            "segment": chance.choice(["new", "repeat", "loyal", "__missing__"], rows),
            "days": chance.integers(0, 180, rows),
            "value": chance.lognormal(3, 1, rows),
        }
    )
    frame.loc[chance.random(rows) < 0.2, "value"] = np.nan
    risk = (
        frame.days / 60
        - frame.orders / 2
        + (frame.segment == "new")
        - frame.spend / 100
    )
    return frame, (risk + chance.normal(size=rows) > 0).astype(int).to_numpy()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the trainer has it: boosting's threads wait for each other on busy cores."""
    with threadpool_limits(1):
        yield


@functools.cache  # nothing below changes what it is given
def fitted(kind: str) -> tuple[Pipeline, pd.DataFrame]:
    frame, churned = customers()
    pipeline = build_pipeline(kind, PARAMETERS[kind], FEATURES, 7)
    return pipeline.fit(frame, churned), frame


def proof_of(
    pipeline: Pipeline, model: onnx.ModelProto, frame: pd.DataFrame, **options: Any
) -> Proof:
    file = ModelFile(model.SerializeToString())
    return prove(pipeline, file, frame, 7, **{"features": FEATURES, **options})


def tree_attributes(model: onnx.ModelProto) -> dict[str, Any]:
    trees = next(n for n in model.graph.node if n.op_type.startswith("TreeEnsemble"))
    return {attribute.name: attribute for attribute in trees.attribute}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_scores_equal_on_real_and_permuted_rows(kind: str) -> None:
    pipeline, frame = fitted(kind)
    proof = proof_of(pipeline, export(pipeline, FEATURES), frame)
    assert proof.passed, proof.reasons
    assert proof.rows == {"real": ROWS, "permuted": 50_000}


@pytest.mark.parametrize(
    ("task", "moved_rows", "passed"),
    [
        ("classification", 2, True),
        ("classification", 3, False),
        ("regression", 20, True),
        ("regression", 21, False),
    ],
)
def test_one_answer_in_ten_thousand_may_change_and_one_score_in_a_thousand(
    task: Task, moved_rows: int, passed: bool
) -> None:
    frame = pd.DataFrame({"spend": np.arange(20_000.0)})
    features = {"spend": "double"}
    stump = {"n_estimators": 1, "max_depth": 1, "bootstrap": False}
    pipeline = build_pipeline("random_forest", stump, features, 7, task)
    pipeline.fit(frame, (frame.spend >= 10_000).astype(int))
    model = export(pipeline, features)
    tree_attributes(model)["nodes_values"].floats[0] += moved_rows
    threshold = 0.5 if task == "classification" else None
    proof = proof_of(pipeline, model, frame, features=features, threshold=threshold)
    reasons_of_real_rows = [r for r in proof.reasons if r.startswith("real")]
    assert (reasons_of_real_rows == []) is passed
    assert proof.largest_difference == 1


def spent(frame: pd.DataFrame) -> np.ndarray:
    """What customers spend: heavy-tailed, most of them nothing."""
    chance = np.random.default_rng(4)
    value = frame.value.fillna(10) * (1 + frame.orders)
    return (
        value * chance.lognormal(0, 1, len(frame)) * (chance.random(len(frame)) < 0.3)
    ).to_numpy()


@functools.cache
def fitted_to_numbers(kind: str, unit: float = 1) -> tuple[Pipeline, pd.DataFrame]:
    frame, _ = customers()
    unfitted = build_pipeline(kind, NUMBERS[kind], FEATURES, 7, "regression")
    return unfitted.fit(frame, spent(frame) * unit), frame


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("unit", [1, 1e-4, 1e6])
def test_numbers_are_equal_on_every_kind_of_row_in_any_unit(
    kind: str, unit: float
) -> None:
    pipeline, frame = fitted_to_numbers(kind, unit)
    model = export(pipeline, FEATURES)
    proof = proof_of(pipeline, model, frame, threshold=None)
    assert proof.passed, proof.reasons
    assert proof.flips is None
    assert set(proof.rows) == KINDS


def test_numbers_altered_by_a_few_hundred_thousandths_fail_the_proof() -> None:
    pipeline, frame = fitted_to_numbers("random_forest")
    model = export(pipeline, FEATURES)
    values = tree_attributes(model)["target_weights"].floats
    for position, value in enumerate(values):
        values[position] = value * (1 + 5e-5)
    proof = proof_of(pipeline, model, frame, threshold=None)
    assert not proof.passed
    assert "flips" not in proof.reasons[0]


def test_a_link_that_the_converter_forgets_fails_the_proof() -> None:
    frame, _ = customers()
    poisson = {"loss": "poisson", "max_iter": 5}
    pipeline = build_pipeline(
        "hist_gradient_boosting", poisson, FEATURES, 7, "regression"
    )
    pipeline.fit(frame, spent(frame))
    model = export(pipeline, FEATURES)
    assert not proof_of(pipeline, model, frame, threshold=None).passed


@pytest.mark.parametrize("kind", PARAMETERS)
def test_inputs_are_columns_of_their_own_type_and_the_output_is_one_score(
    kind: str,
) -> None:
    pipeline, frame = fitted(kind)
    session = ort.InferenceSession(export(pipeline, FEATURES).SerializeToString())
    found = {item.name: (item.type, item.shape) for item in session.get_inputs()}
    types = {
        "int64": "tensor(int64)",
        "double": "tensor(double)",
        "string": "tensor(string)",
    }
    assert found == {name: (types[kind], ["N"]) for name, kind in FEATURES.items()}
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("score", "tensor(float)", ["N"])
    ]
    (score,) = session.run(
        None, {name: frame[name].to_numpy()[:5] for name in FEATURES}
    )
    assert score == pytest.approx(pipeline.predict_proba(frame[:5])[:, 1], abs=1e-6)


@pytest.mark.parametrize("trees", [10, 18])
def test_shares_that_float32_sums_to_more_than_one_are_a_probability(
    trees: int,
) -> None:
    frame = pd.DataFrame({"spend": np.arange(200.0)})
    features = {"spend": "double"}
    pipeline = build_pipeline("random_forest", {"n_estimators": trees}, features, 7)
    model = export(pipeline.fit(frame, frame.spend >= 100), features)
    scores = score(ModelFile(model.SerializeToString()), features, frame)
    assert (scores.min(), scores.max()) == (0, 1)
    assert proof_of(pipeline, model, frame, features=features).passed


@pytest.mark.parametrize("kind", ["random_forest", "hist_gradient_boosting"])
def test_a_threshold_altered_by_hand_fails_the_proof(kind: str) -> None:
    pipeline, frame = fitted(kind)
    model = export(pipeline, FEATURES)
    values = tree_attributes(model)["nodes_values"].floats
    position = next(i for i, value in enumerate(values) if value > 1)
    values[position] -= 1
    assert not proof_of(pipeline, model, frame).passed


def test_bytes_that_are_no_model_are_a_failed_proof_not_an_error() -> None:
    pipeline, frame = fitted("logistic_regression")
    proof = prove(pipeline, ModelFile(b"not a model"), frame, 7, features=FEATURES)
    assert not proof.passed
    assert len(proof.reasons) == 1


def test_the_bytes_are_the_same_in_another_process() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_onnx_export import *\n"
        "with threadpool_limits(1):\n"
        "    print(*digests())\n"
    )
    command = [commands_folder() / "python", "-c", code, Path(__file__).parent]
    there = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": CLONE},
    ).stdout.split()
    assert there == digests()


def digests() -> list[str]:
    made = [*map(fitted, PARAMETERS), *map(fitted_to_numbers, NUMBERS)]
    models = [export(pipeline, FEATURES).SerializeToString() for pipeline, _ in made]
    return [hashlib.sha256(raw).hexdigest() for raw in models]


def test_what_cannot_be_exported_is_refused_by_name() -> None:
    frame, churned = customers(200)
    labels = np.where(churned == 1, 2, 0)
    pipeline = build_pipeline("logistic_regression", {}, FEATURES, 7).fit(frame, labels)
    with pytest.raises(TrainingError, match=r"\[0, 2\]"):
        export(pipeline, FEATURES)
    pipeline = build_pipeline(f"{OWN}:Unknown", {}, FEATURES, 7).fit(frame, churned)
    with pytest.raises(
        TrainingError, match=r"ONNX export of Unknown: .*shape calculator.*own-mod"
    ):
        export(pipeline, FEATURES)


def test_numbers_alone_need_no_string_column() -> None:
    frame, churned = customers(500)
    features = {"orders": "int64", "spend": "double"}
    pipeline = build_pipeline("random_forest", {"n_estimators": 5}, features, 7)
    pipeline.fit(frame[list(features)], churned)
    model = export(pipeline, features)
    assert proof_of(pipeline, model, frame, features=features).passed


@pytest.mark.parametrize("kind", ["hist_gradient_boosting", "xgboost", "lightgbm"])
def test_nulls_where_training_saw_none_or_only_some_go_the_same_way(kind: str) -> None:
    frame, churned = customers(3_000)
    features = {"spend": "double", "value": "double", "left": "double"}
    frame["left"] = frame.spend - 60  # also below 0, where LightGBM takes a null for 0
    rounds = {"max_iter" if kind == "hist_gradient_boosting" else "n_estimators": 20}
    pipeline = build_pipeline(kind, rounds, features, 7).fit(
        frame[list(features)], churned
    )
    rows = pd.concat(
        [frame[list(features)].assign(**{name: np.nan}) for name in features]
    )
    raw = export(pipeline, features).SerializeToString()
    expected = pipeline.predict_proba(rows)[:, 1]
    assert score(ModelFile(raw), features, rows) == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(expected)) > 100


@pytest.mark.parametrize(
    ("factory", "passed"),
    [("xgboost_on_scaled_columns", True), ("xgboost_behind_a_scaler", False)],
)
def test_xgboost_behind_a_scaler_passes_on_float32_and_is_found_out_on_float64(
    factory: str, passed: bool
) -> None:
    frame, churned = customers()
    pipeline = build_pipeline(f"{OWN}:{factory}", {}, FEATURES, 7).fit(frame, churned)
    proof = proof_of(pipeline, export(pipeline, FEATURES), frame)
    assert proof.passed is passed
    assert (proof.largest_difference > 0.1) is not passed


@pytest.mark.parametrize(("wrong", "passed"), [(0.0, True), (0.1, False)])
def test_a_models_own_onnx_is_taken_and_compared(wrong: float, passed: bool) -> None:
    frame, churned = customers(1_000)
    model = build_pipeline(
        f"{OWN}:Sigmoid", {"feature": "days", "wrong": wrong}, FEATURES, 7
    )
    model.fit(frame, churned)
    proof = proof_of(model, export(model, FEATURES), frame)
    assert proof.passed is passed, proof.reasons

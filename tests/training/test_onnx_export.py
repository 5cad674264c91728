"""Exported models score as their scikit-learn pipelines do, and a wrong one is found out."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from core.settings import CLONE
from mlflow_server.pyfunc import ModelFile
from tests.conftest import at_most
from tests.preloaded import commands_folder
from training.estimators import build_pipeline
from training.onnx_export import export, pipeline_scores, prove, score

if TYPE_CHECKING:
    from collections.abc import Iterator

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
KINDS = {"real", "permuted", "null", "neighbour below", "neighbour above"}


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
    return build_pipeline(kind, PARAMETERS[kind], FEATURES, 7).fit(
        frame, churned
    ), frame


@pytest.mark.timed
@pytest.mark.parametrize("kind", PARAMETERS)
def test_scores_equal_on_every_kind_of_row(kind: str) -> None:
    pipeline, frame = fitted(kind)
    model = export(pipeline, FEATURES)
    started = time.monotonic()
    proof = prove(
        pipeline, ModelFile(model.SerializeToString()), frame, 7, features=FEATURES
    )
    assert time.monotonic() - started < at_most(6)
    assert proof.passed, proof.reasons
    assert (proof.flips, proof.reasons) == (0, ())
    assert proof.largest_difference < 1e-5
    assert proof.rows["real"] == ROWS
    assert proof.rows["permuted"] == 50_000
    assert set(proof.rows) == KINDS


def test_one_flip_in_ten_thousand_rows_is_let_through_and_one_in_a_thousand_is_not() -> (
    None
):
    pipeline, _ = fitted("logistic_regression")
    frame, _ = customers(20_000)
    model = ModelFile(export(pipeline, FEATURES).SerializeToString())
    fitted_scores = np.round(pipeline_scores(pipeline, frame), 6)
    served_scores = np.round(score(model, FEATURES, frame), 6)
    between = np.maximum(fitted_scores, served_scores)[fitted_scores != served_scores]
    flips = [np.sum((fitted_scores >= t) != (served_scores >= t)) for t in between]
    threshold = float(between[flips.index(1)])
    proof = partial(
        prove, pipeline, model, seed=7, features=FEATURES, threshold=threshold
    )
    assert "real" not in " ".join(proof(frame=frame).reasons)
    assert proof(frame=frame).flips > 0
    row = np.flatnonzero((fitted_scores >= threshold) != (served_scores >= threshold))[
        0
    ]
    few = frame.iloc[row // 1000 * 1000 :][:1000]
    assert ", 1 flips" in " ".join(
        r for r in proof(frame=few).reasons if r.startswith("real")
    )


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
    (output,) = model.graph.output
    assert (output.name, output.type.tensor_type.elem_type) == (
        "score",
        onnx.TensorProto.FLOAT,
    )
    raw = model.SerializeToString()
    proof = prove(pipeline, ModelFile(raw), frame, 7, features=FEATURES, threshold=None)
    assert proof.passed, proof.reasons
    assert proof.flips is None
    assert 0 < proof.largest_difference < 1e-5
    assert set(proof.rows) == KINDS


@pytest.mark.parametrize("kind", ["random_forest", "hist_gradient_boosting"])
def test_trees_whose_sums_float32_holds_give_the_same_bits(kind: str) -> None:
    """Eight trees grown to whole numbers; one boosted tree with all its sums in eighths."""
    frame, _ = customers(1_000)
    y = np.random.default_rng(5).integers(0, 4, 1_000) * 1024.0
    own = (
        {"n_estimators": 8, "bootstrap": False} if "forest" in kind else {"max_iter": 1}
    )
    pipeline = build_pipeline(kind, own, FEATURES, 7, "regression").fit(frame, y)
    if kind == "hist_gradient_boosting":
        (tree,) = (each for (each,) in pipeline[-1]._predictors)
        tree.nodes["value"] = np.round(tree.nodes["value"] * 8) / 8
        pipeline[-1]._baseline_prediction = np.round(pipeline[-1]._baseline_prediction)
    raw = export(pipeline, FEATURES).SerializeToString()
    proof = prove(pipeline, ModelFile(raw), frame, 7, features=FEATURES, threshold=None)
    assert (proof.passed, proof.largest_difference) == (True, 0.0)


def test_numbers_altered_by_a_hundred_thousandth_fail_the_proof_and_so_does_a_link() -> (
    None
):
    pipeline, frame = fitted_to_numbers("random_forest")
    model = export(pipeline, FEATURES)
    trees = next(
        node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")
    )
    values = next(a for a in trees.attribute if a.name == "target_weights").floats
    for at, value in enumerate(values):
        values[at] = value * (1 + 2e-5)
    raw = model.SerializeToString()
    assert not prove(
        pipeline, ModelFile(raw), frame, 7, features=FEATURES, threshold=None
    ).passed
    # Counts by their logarithm: skl2onnx forgets the way back.
    poisson = {"loss": "poisson", "max_iter": 5}
    pipeline = build_pipeline(
        "hist_gradient_boosting", poisson, FEATURES, 7, "regression"
    )
    raw = export(pipeline.fit(frame, spent(frame)), FEATURES).SerializeToString()
    proof = prove(pipeline, ModelFile(raw), frame, 7, features=FEATURES, threshold=None)
    assert not proof.passed
    assert "flips" not in proof.reasons[0]


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
    raw = export(pipeline.fit(frame, frame.spend >= 100), features).SerializeToString()
    scores = score(ModelFile(raw), features, frame)
    assert (scores.min(), scores.max()) == (0, 1)
    proof = prove(pipeline, ModelFile(raw), frame, 7, features=features)
    assert proof.passed, proof.reasons


@pytest.mark.parametrize("kind", ["random_forest", "hist_gradient_boosting"])
def test_a_threshold_altered_by_hand_fails_the_proof(kind: str) -> None:
    pipeline, frame = fitted(kind)
    model = export(pipeline, FEATURES)
    trees = next(
        node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")
    )
    values = next(a for a in trees.attribute if a.name == "nodes_values").floats
    at = next(i for i, value in enumerate(values) if value > 1)
    values[at] = np.nextafter(np.float32(values[at]), np.float32(0))
    values[at] -= 1
    proof = prove(
        pipeline, ModelFile(model.SerializeToString()), frame, 7, features=FEATURES
    )
    assert not proof.passed
    assert proof.reasons


def test_one_float32_step_of_the_thresholds_is_found_by_rows_one_step_beside_the_real_ones() -> (
    None
):
    pipeline, frame = fitted("hist_gradient_boosting")
    model = export(pipeline, FEATURES)
    trees = next(
        node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")
    )
    attributes = {a.name: a for a in trees.attribute}
    numbers = [
        name
        for kind in ("int64", "double")
        for name in FEATURES
        if FEATURES[name] == kind
    ]
    values = attributes["nodes_values"].floats
    for at, feature in enumerate(attributes["nodes_featureids"].ints):
        if (
            values[at] > 0
            and feature < len(numbers)
            and FEATURES[numbers[feature]] == "double"
        ):
            values[at] = np.nextafter(np.float32(values[at]), np.float32(np.inf))
    proof = prove(
        pipeline, ModelFile(model.SerializeToString()), frame, 7, features=FEATURES
    )
    assert any(reason.startswith("neighbour above") for reason in proof.reasons)


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


def test_exporting_leaves_the_pipeline_as_it_was() -> None:
    pipeline, frame = fitted("hist_gradient_boosting")
    before = pipeline.predict_proba(frame)
    thresholds = pipeline[-1]._predictors[0][0].nodes["num_threshold"].copy()
    export(pipeline, FEATURES)
    assert (pipeline[-1]._predictors[0][0].nodes["num_threshold"] == thresholds).all()
    assert (pipeline.predict_proba(frame) == before).all()


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
    assert isinstance(model, onnx.ModelProto)
    assert prove(
        pipeline, ModelFile(model.SerializeToString()), frame, 7, features=features
    ).passed


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("kind", ["hist_gradient_boosting", "xgboost", "lightgbm"])
def test_thresholds_between_neighbouring_float32_values_keep_every_row_on_its_side(
    kind: str, task: Task
) -> None:
    # From 2^24 on float32 holds every second whole number: each midpoint lies between two.
    steps = np.arange(4_000) % 20
    frame = pd.DataFrame({"spend": 2.0**24 + 2 * steps})
    features = {"spend": "double"}
    rounds = {"max_iter" if kind == "hist_gradient_boosting" else "n_estimators": 20}
    pipeline = build_pipeline(kind, rounds, features, 7, task)
    pipeline.fit(frame, (steps * 7 % 20 > 9).astype(int))
    raw = export(pipeline, features).SerializeToString()
    threshold = 0.5 if task == "classification" else None
    proof = prove(
        pipeline, ModelFile(raw), frame, 7, features=features, threshold=threshold
    )
    assert proof.passed, proof.reasons


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
    raw = export(pipeline, FEATURES).SerializeToString()
    proof = prove(pipeline, ModelFile(raw), frame, 7, features=FEATURES)
    assert proof.passed is passed
    assert (proof.largest_difference > 0.1) is not passed
    assert {reason.split(":")[0] for reason in proof.reasons} == (
        set() if passed else KINDS
    )


@pytest.mark.parametrize(("wrong", "passed"), [(0.0, True), (0.1, False)])
def test_a_models_own_onnx_is_taken_and_compared(wrong: float, passed: bool) -> None:
    frame, churned = customers(1_000)
    model = build_pipeline(
        f"{OWN}:Sigmoid", {"feature": "days", "wrong": wrong}, FEATURES, 7
    )
    model.fit(frame, churned)
    raw = export(model, FEATURES).SerializeToString()
    proof = prove(model, ModelFile(raw), frame, 7, features=FEATURES)
    assert proof.passed is passed, proof.reasons
    assert set(proof.rows) == KINDS

"""Exported models score as their scikit-learn pipelines do, and a wrong one is refused."""

import functools

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from mlflow_server.pyfunc import ModelFile
from training.estimators import build_pipeline
from training.onnx_export import export, prove
from training.scoring import score

FEATURES = {
    "orders": "int64",
    "spend": "double",
    "segment": "string",
    "days": "int64",
    "value": "double",
}
FEW_TREES = {"n_estimators": 20, "max_depth": 6}
PARAMETERS = {
    "logistic_regression": {},
    "ridge": {},
    "random_forest": FEW_TREES,
    "hist_gradient_boosting": {"max_iter": 20},
    "xgboost": FEW_TREES,
    "lightgbm": FEW_TREES,
}
CLASSIFIERS = [kind for kind in PARAMETERS if kind != "ridge"]
REGRESSORS = [kind for kind in PARAMETERS if kind != "logistic_regression"]
FACTORIES = "tests.training.factories"


def customers():
    rows = 4_000
    random = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "orders": random.poisson(2, rows),
            "spend": random.exponential(60, rows).round(2),
            "segment": random.choice(["new", "repeat", "loyal", "__missing__"], rows),
            "days": random.integers(0, 180, rows),
            "value": random.lognormal(3, 1, rows),
        }
    )
    frame.loc[random.random(rows) < 0.2, "value"] = np.nan
    risk = frame.days / 60 - frame.orders / 2 - frame.spend / 100
    risk += frame.segment == "new"
    return frame, (risk + random.normal(size=rows) > 0).astype(int).to_numpy()


def spending(frame):
    """What customers spend: heavy-tailed, most of them nothing."""
    random = np.random.default_rng(4)
    amount = frame.value.fillna(10) * (1 + frame.orders)
    amount *= random.lognormal(0, 1, len(frame))
    return (amount * (random.random(len(frame)) < 0.3)).to_numpy()


@pytest.fixture(autouse=True)
def one_thread():
    """As the trainer has it: boosting's threads wait for each other on busy cores."""
    with threadpool_limits(1):
        yield


@functools.cache  # no test changes what it returns
def fitted(kind, task="classification", unit=1):
    """Pipeline and rows: of classes, or of numbers in a unit."""
    frame, labels = customers()
    if task == "multiclass":
        labels = np.digitize(frame.days - 10 * frame.orders, [30, 90])
    if task == "regression":
        labels = spending(frame) * unit
    pipeline = build_pipeline(kind, PARAMETERS[kind], FEATURES, 7, task)
    return pipeline.fit(frame, labels), frame


def proof_of(pipeline, model, frame, **options):
    file = ModelFile(model.SerializeToString())
    return prove(pipeline, file, frame, 7, **{"features": FEATURES, **options})


def tree_attributes(model):
    trees = next(n for n in model.graph.node if n.op_type.startswith("TreeEnsemble"))
    return {attribute.name: attribute for attribute in trees.attribute}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_onnx_scores_equal_those_of_the_pipeline_on_real_and_permuted_rows(kind):
    pipeline, frame = fitted(kind)
    model = export(pipeline, FEATURES)
    proof = proof_of(pipeline, model, frame)
    assert proof.reasons == ()
    session = ort.InferenceSession(model.SerializeToString())
    inputs = {column.name: column.type for column in session.get_inputs()}
    assert inputs == {name: f"tensor({kind})" for name, kind in FEATURES.items()}
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("score", "tensor(float)", ["N"])


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_onnx_scores_of_every_class_equal_those_of_the_pipeline(kind):
    pipeline, frame = fitted(kind, "multiclass")
    model = export(pipeline, FEATURES, 3)
    assert proof_of(pipeline, model, frame, threshold=None).reasons == ()
    scores = score(ModelFile(model.SerializeToString()), FEATURES, frame)
    assert np.abs(scores - pipeline.predict_proba(frame)).max() < 1e-5


@pytest.mark.parametrize("kind", REGRESSORS)
@pytest.mark.parametrize("unit", [1e-4, 1e6])
def test_onnx_numbers_equal_those_of_the_pipeline_in_any_unit(kind, unit):
    pipeline, frame = fitted(kind, "regression", unit)
    proof = proof_of(pipeline, export(pipeline, FEATURES), frame, threshold=None)
    assert proof.reasons == ()


@pytest.mark.parametrize(
    ("task", "moved_rows", "passed"),
    [
        ("classification", 2, True),
        ("classification", 3, False),
        ("regression", 20, True),
        ("regression", 21, False),
    ],
)
def test_one_answer_in_ten_thousand_and_one_number_in_a_thousand_may_differ(
    task, moved_rows, passed
):
    frame = pd.DataFrame({"spend": np.arange(20_000.0)})
    features = {"spend": "double"}
    stump = {"n_estimators": 1, "max_depth": 1, "bootstrap": False}
    pipeline = build_pipeline("random_forest", stump, features, 7, task)
    pipeline.fit(frame, (frame.spend >= 10_000).astype(int))
    model = export(pipeline, features)
    tree_attributes(model)["nodes_values"].floats[0] += moved_rows
    threshold = 0.5 if task == "classification" else None
    proof = proof_of(pipeline, model, frame, features=features, threshold=threshold)
    reasons = [reason for reason in proof.reasons if reason.startswith("real")]
    assert (reasons == []) is passed
    assert proof.largest_difference == 1


def test_an_altered_or_wrongly_exported_file_fails_the_proof():
    pipeline, frame = fitted("random_forest")
    model = export(pipeline, FEATURES)
    thresholds = tree_attributes(model)["nodes_values"].floats
    position = next(i for i, value in enumerate(thresholds) if value > 1)
    thresholds[position] -= 1
    assert proof_of(pipeline, model, frame).reasons
    no_model = ModelFile(b"not a model")
    assert prove(pipeline, no_model, frame, 7, features=FEATURES).reasons

    pipeline, frame = fitted("random_forest", "regression", 1e6)
    model = export(pipeline, FEATURES)
    weights = tree_attributes(model)["target_weights"].floats
    for position, weight in enumerate(weights):
        weights[position] = weight * (1 + 5e-5)
    assert proof_of(pipeline, model, frame, threshold=None).reasons

    poisson = {"loss": "poisson", "max_iter": 5}  # a link that the converter forgets
    kind = "hist_gradient_boosting"
    pipeline = build_pipeline(kind, poisson, FEATURES, 7, "regression")
    pipeline.fit(frame, spending(frame))
    model = export(pipeline, FEATURES)
    assert proof_of(pipeline, model, frame, threshold=None).reasons

    pipeline, frame = fitted("logistic_regression", "multiclass")
    other = clone(pipeline).fit(frame, (pipeline.predict(frame) + 1) % 3)
    model = export(pipeline, FEATURES, 3)
    proof = proof_of(other, model, frame, threshold=None)
    assert "flips" in proof.reasons[0]


def test_a_model_that_cannot_be_exported_is_refused_by_name():
    frame, churned = customers()
    labels = np.where(churned == 1, 2, 0)
    pipeline = build_pipeline("logistic_regression", {}, FEATURES, 7).fit(frame, labels)
    with pytest.raises(TrainingError, match=r"\[0, 2\]"):
        export(pipeline, FEATURES)
    pipeline = build_pipeline(f"{FACTORIES}:Unknown", {}, FEATURES, 7)
    message = r"ONNX export of Unknown: .*shape calculator.*own-mod"
    with pytest.raises(TrainingError, match=message):
        export(pipeline.fit(frame, churned), FEATURES)


@pytest.mark.parametrize("kind", ["hist_gradient_boosting", "xgboost", "lightgbm"])
def test_onnx_scores_nulls_like_the_pipeline_even_if_training_had_none(kind):
    frame, churned = customers()
    features = {"spend": "double", "value": "double", "left": "double"}
    frame["left"] = frame.spend - 60  # also below 0, where LightGBM takes a null for 0
    frame = frame[list(features)]
    pipeline = build_pipeline(kind, PARAMETERS[kind], features, 7).fit(frame, churned)
    rows = pd.concat([frame.assign(**{name: np.nan}) for name in features])
    content = export(pipeline, features).SerializeToString()
    expected = pipeline.predict_proba(rows)[:, 1]
    scores = score(ModelFile(content), features, rows)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(expected)) > 100


@pytest.mark.parametrize(
    ("factory", "parameters", "passed"),
    [
        ("xgboost_on_scaled_columns", {}, True),  # its scaler sees float32
        ("Sigmoid", {"feature": "days"}, True),  # ONNX of its own
        ("Sigmoid", {"feature": "days", "wrong": 0.1}, False),
    ],
)
def test_a_model_of_a_factory_passes_if_its_onnx_file_gives_the_same_scores(
    factory, parameters, passed
):
    frame, churned = customers()
    model = build_pipeline(f"{FACTORIES}:{factory}", parameters, FEATURES, 7)
    model.fit(frame, churned)
    proof = proof_of(model, export(model, FEATURES), frame)
    assert (proof.reasons == ()) is passed

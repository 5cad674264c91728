"""Exported models score as their scikit-learn pipelines do, and a wrong one is refused."""

from itertools import product

import mlflow
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from mlflow_server.model.pyfunc import ModelFile
from tests.support.training.onnx_models import (
    FEATURES,
    FEW_TREES,
    PARAMETERS,
    customers,
    fitted,
    pipeline_of,
    spec_of,
    spending,
)
from training.data.frame import memory_needed
from training.model.estimators import category_remarks
from training.model.onnx_export import NULL_TEXTS, export, exported
from training.model.proof import prove
from training.model.scoring import score

CLASSIFIERS = [kind for kind in PARAMETERS if kind != "ridge"]
REGRESSORS = [kind for kind in PARAMETERS if kind != "logistic_regression"]
FACTORIES = "tests.support.training.factories"


@pytest.fixture(autouse=True)
def one_thread():
    """As the trainer has it: boosting's threads wait for each other on busy cores."""
    with threadpool_limits(1):
        yield


def proof_of(pipeline, model, frame, threshold=0.5, spec=None):
    file = ModelFile(model.SerializeToString())
    return prove(pipeline, file, frame, spec or spec_of(), threshold)


def tree_attributes(model):
    trees = next(n for n in model.graph.node if n.op_type.startswith("TreeEnsemble"))
    return {attribute.name: attribute for attribute in trees.attribute}


@pytest.mark.parametrize(
    ("kind", "task", "unit"),
    [
        *product(CLASSIFIERS, ["classification", "multiclass"], [1]),
        *product(REGRESSORS, ["regression"], [1e-4, 1e6]),
    ],
)
def test_the_served_file_scores_real_and_permuted_rows_like_the_fitted_model(
    kind, task, unit
):
    pipeline, frame = fitted(kind, task, unit)
    model = export(pipeline, spec_of(task))
    threshold = 0.5 if task == "classification" else None
    assert proof_of(pipeline, model, frame, threshold=threshold).reasons == ()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_features_of_any_name_are_exported(kind):
    frame, churned = customers()
    odd_names = ["door opens/h", "door_opens_h", "a<b", "7 days [x]", "größe"]
    names = dict(zip(frame.columns, odd_names, strict=False))
    assert len(names) == len(frame.columns)
    features = {names[name]: kind for name, kind in FEATURES.items()}
    frame = frame.rename(columns=names)[[*features]]
    spec = spec_of(features=features)
    pipeline = pipeline_of(kind, PARAMETERS[kind], spec, frame).fit(frame, churned)
    proof = proof_of(pipeline, export(pipeline, spec, frame), frame, spec=spec)
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
    spec = spec_of(task, {"spend": "double"})
    stump = {"n_estimators": 1, "max_depth": 1, "bootstrap": False}
    pipeline = pipeline_of("random_forest", stump, spec)
    pipeline.fit(frame, (frame.spend >= 10_000).astype(int))
    model = export(pipeline, spec)
    tree_attributes(model)["nodes_values"].floats[0] += moved_rows
    threshold = 0.5 if task == "classification" else None
    proof = proof_of(pipeline, model, frame, threshold, spec)
    reasons = [reason for reason in proof.reasons if reason.startswith("real")]
    assert (reasons == []) is passed
    assert proof.largest_difference == 1


def test_an_altered_or_wrongly_exported_file_fails_the_proof():
    pipeline, frame = fitted("random_forest")
    model = export(pipeline, spec_of())
    thresholds = tree_attributes(model)["nodes_values"].floats
    position = next(i for i, value in enumerate(thresholds) if value > 1)
    thresholds[position] -= 1
    assert proof_of(pipeline, model, frame).reasons

    pipeline, frame = fitted("random_forest", "regression", 1e6)
    model = export(pipeline, spec_of())
    weights = tree_attributes(model)["target_weights"].floats
    for position, weight in enumerate(weights):
        weights[position] = weight * (1 + 5e-5)
    assert proof_of(pipeline, model, frame, threshold=None).reasons

    poisson = {"loss": "poisson", "max_iter": 5}  # a link that the converter forgets
    kind = "hist_gradient_boosting"
    pipeline = pipeline_of(kind, poisson, spec_of("regression"))
    pipeline.fit(frame, spending(frame))
    model = export(pipeline, spec_of())
    assert proof_of(pipeline, model, frame, threshold=None).reasons


def test_a_model_that_cannot_be_exported_is_refused_by_name():
    pipeline = pipeline_of(f"{FACTORIES}:Unknown", {})
    pipeline.fit(*customers())
    message = r"ONNX export of Unknown: .*shape calculator.*own-mod"
    with pytest.raises(TrainingError, match=message):
        export(pipeline, spec_of())


@pytest.mark.parametrize("kind", ["hist_gradient_boosting", "xgboost", "lightgbm"])
def test_onnx_scores_nulls_like_the_pipeline_even_if_training_had_none(kind):
    frame, churned = customers()
    features = {"spend": "double", "value": "double", "left": "double"}
    frame["left"] = frame.spend - 60  # also below 0, where LightGBM takes a null for 0
    frame = frame[[*features]]
    spec = spec_of(features=features)
    pipeline = pipeline_of(kind, PARAMETERS[kind], spec).fit(frame, churned)
    rows = pd.concat([frame.assign(**{name: np.nan}) for name in features])
    content = export(pipeline, spec).SerializeToString()
    expected = pipeline.predict_proba(rows)[:, 1]
    scores = score(ModelFile(content), features, rows)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(expected)) > 100


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (0.1, False)])
def test_a_model_with_onnx_of_its_own_passes_if_that_gives_the_same_scores(
    wrong, passed
):
    frame, churned = customers()
    parameters = {"feature": "days", "wrong": wrong}
    model = pipeline_of(f"{FACTORIES}:Sigmoid", parameters)
    model.fit(frame, churned)
    proof = proof_of(model, export(model, spec_of()), frame)
    assert (proof.reasons == ()) is passed


@pytest.mark.parametrize("kind", ["xgboost", "lightgbm"])
def test_onnx_tells_neighbours_of_float32_apart(kind):
    spec = spec_of(features={"spend": "double"})
    random = np.random.default_rng(5)
    lower = random.uniform(1, 100, 12).astype(np.float32)
    pairs = np.stack([lower, np.nextafter(lower, np.float32(np.inf))], axis=1)
    values = np.repeat(np.sort(pairs.ravel()), 60)
    frame = pd.DataFrame({"spend": values.astype(float)})
    labels = np.tile(np.repeat([0, 1], 60), 12)
    pipeline = pipeline_of(kind, {}, spec, frame)
    pipeline.fit(frame, labels)
    expected = pipeline.predict_proba(frame)[:, 1]
    assert len({*expected.round(6)}) > 1
    served = ModelFile(export(pipeline, spec).SerializeToString())
    assert score(served, spec.inputs, frame) == pytest.approx(expected, abs=1e-6)


def codes(count):
    """Rows with a text of so many values, of which low ones are frequent."""
    frame, labels = customers()
    random = np.random.default_rng(5)
    numbers = (count * random.random(len(frame)) ** 3).astype(int)
    numbers[:count] = range(count)
    frame["segment"] = [f"s{number:05}" for number in numbers]
    return frame, labels


@pytest.mark.parametrize("kind", ["logistic_regression", "hist_gradient_boosting"])
def test_a_text_with_many_values_becomes_a_limited_number_of_columns(kind):
    frame, labels = codes(3_000)
    pipeline = pipeline_of(kind, PARAMETERS[kind], rows=frame).fit(frame, labels)
    matrix = pipeline[0].transform(frame)
    assert matrix.shape[1] == 4 + 255
    column_sums = matrix[:, 4:].sum(axis=0)
    rare = frame["segment"].value_counts().iloc[255:]
    assert column_sums.min() >= rare.max()
    graph = export(pipeline, spec_of())
    assert proof_of(pipeline, graph, frame).reasons == ()
    (remark,) = category_remarks(FEATURES, frame)
    assert remark.startswith("segment has 3,000 values in 4,000 rows, as a code has")


def test_few_values_are_encoded_as_before_and_columns_count_as_memory():
    frame, labels = codes(255)
    graphs = [
        export(
            pipeline_of("random_forest", FEW_TREES, rows=rows).fit(frame, labels),
            spec_of(),
        )
        for rows in (None, frame)
    ]
    assert graphs[0].SerializeToString() == graphs[1].SerializeToString()
    assert [*category_remarks(FEATURES, frame)] == []
    spec = spec_of()
    for values, columns in ((8_000, 255), (9, 9)):
        texts = [f"s{number % values}" for number in range(100_000)]
        rows = pa.table({"segment": texts, "at": texts})
        needed = memory_needed(spec, rows) - memory_needed(spec, rows.select(["at"]))
        matrix_bytes = len(texts) * columns * 4
        assert 6 * matrix_bytes < needed < 8 * matrix_bytes


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
@pytest.mark.parametrize("real_text", [None, "None"])
def test_a_null_text_is_scored_by_mlflows_pyfunc_as_by_serving(tmp_path, real_text):
    frame, labels = customers()
    if real_text:  # then it cannot be told from a null
        frame.loc[:99, "segment"] = real_text
    pipeline = pipeline_of("random_forest", FEW_TREES).fit(frame, labels)
    spec = spec_of()
    served = exported(pipeline, spec, frame)
    assert prove(pipeline, served, frame, spec, 0.5).reasons == ()
    folder = str(tmp_path / "model")
    mlflow.onnx.save_model(onnx.load_from_string(served.content), folder)
    model = mlflow.pyfunc.load_model(folder)
    is_missing = frame["segment"] == "__missing__"
    rows = frame[is_missing].head(50)
    expected = score(served, FEATURES, rows)
    for null, text in zip((None, np.nan, pd.NA), NULL_TEXTS, strict=True):
        nulls = pd.Series([null] * len(rows), rows.index, dtype=object)
        scores = model.predict(rows.assign(segment=nulls)).to_numpy().ravel()
        assert np.array_equal(scores, expected) is (text != real_text)

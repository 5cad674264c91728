"""`/explain`: what each feature adds to a prediction, for versions of every task."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.copies import Origin
from serving.explanation import explain
from serving.features import FeatureSource
from serving.model import LoadedModel, score
from tests.serving.conftest import (
    FEATURES,
    KNOWN,
    SPEC,
    contract,
    onnx_graph,
    opened_version,
    tiny_onnx,
)
from tests.serving.test_numbers import NUMBER, NUMBERS

BACKGROUND = tuple(
    FEATURES | {"days_since_last_order": days, "avg_order_value": value}
    for days, value in ((0, 3.5), (40, None), (90, 20.08))
)


def ask(client, **body):
    return client.post("/explain", json={"customer_id": KNOWN} | body)


def test_an_explanation_adds_up_to_the_prediction_and_is_not_logged(rig, served):
    prediction = rig.predict_online(served.client).json()
    count = len(rig.rows())
    explanation = rig.online(lambda: ask(served.client)).json()
    assert len(rig.rows()) == count
    assert explanation["model"] == SPEC.name
    for name in prediction.keys() - {"request_id", "logged"}:
        assert explanation[name] == prediction[name]
    contributions = explanation["contributions"].values()
    parts = [part["contribution"] for part in contributions]
    assert parts == sorted(parts, key=abs, reverse=True)
    # Without rows of the training a version is explained against its defaults.
    base = 1 / (1 + np.exp(1.0 - 0.01 * FEATURES["days_since_last_order"]))
    assert explanation["expected"] == pytest.approx(base, abs=2e-6)
    total = explanation["expected"] + sum(parts)
    assert total == pytest.approx(prediction["probability"], abs=1e-5)


def test_only_one_explanation_runs_at_a_time_and_predictions_are_answered(rig, served):
    with ThreadPoolExecutor(16) as threads:
        answers = [*threads.map(lambda _: ask(served.client), range(100))]
        predictions = [*threads.map(lambda _: rig.predict(served.client), range(50))]
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "explanation is under way" in refused.json()["detail"]
    assert {answer.status_code for answer in predictions} == {200}


def three_classes():
    """A graph of the probabilities of three classes: softmax of days · (0.01, 0, -0.01)."""
    nodes = """
        days = Cast <to = 1> (days_since_last_order)
        column = Unsqueeze (days, last)
        sums = MatMul (column, weights)
        score = Softmax (sums)"""
    weights = "float[1, 3] weights = {0.01, 0.0, -0.01}, int64[1] last = {1}"
    return onnx_graph(SPEC.features, nodes, weights, score="float[N, 3]")


NAMES = ("late", "on_time", "early")
THREE = contract().model_copy(update={"threshold": None, "classes": NAMES})
CLASSES = {"task": "multiclass", "classes": NAMES, "threshold": None, "costs": None}


@pytest.mark.parametrize(
    ("served_model", "spec", "graph", "prediction"),
    [
        (contract(), SPEC, tiny_onnx(-1.0), 1.0),
        (NUMBER, NUMBERS, tiny_onnx(-89.0, "Identity"), -87.4),
        (THREE, SPEC.model_copy(update=CLASSES), three_classes(), 0.0),
    ],
    ids=["classification", "regression", "multiclass"],
)
def test_contributions_add_up_to_the_score_in_every_task(
    rig, tmp_path, served_model, spec, graph, prediction
):
    model_with_rows = served_model.model_copy(update={"background": BACKGROUND})
    opened = opened_version(tmp_path, model_with_rows, graph, spec)
    origin = Origin(created=0, digests={})
    model = LoadedModel("1", origin, *opened, FeatureSource(rig.settings, None))
    row = FEATURES | {"days_since_last_order": 160}
    explanation = explain(model, row, prediction)
    rows = [*BACKGROUND, row]
    scores = np.array(score(model.session, model.contract, rows)).reshape(4, -1)[:, 0]
    mean = scores[:3].mean()
    assert explanation["expected"] == pytest.approx(mean, rel=1e-5)
    first, *others = explanation["contributions"].items()
    part = pytest.approx(scores[3] - mean, rel=1e-4, abs=1e-6 * abs(mean))
    assert first == ("days_since_last_order", {"value": 160, "contribution": part})
    assert {other["contribution"] for _, other in others} == {0.0}

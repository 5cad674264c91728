"""`/explain`: what each feature adds to a prediction, for versions of every task."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.additions.explanation import explain_score
from serving.features.source import FeatureSource
from serving.versions.copies import Origin
from serving.versions.model import LoadedModel, score
from tests.serving.conftest import (
    FEATURES,
    KNOWN,
    SPEC,
    contract,
    onnx_graph,
    opened_version,
    tiny_onnx,
)
from tests.support.serving.number_rows import NUMBER, NUMBERS

BACKGROUND = tuple(
    FEATURES | {"days_since_last_order": days, "avg_order_value": value}
    for days, value in ((0, 3.5), (40, None), (90, 20.08))
)


def ask(client):
    return client.post("/explain", json={"customer_id": KNOWN})


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
    def ask_both(_):
        return ask(served.client), rig.predict(served.client).status_code

    with ThreadPoolExecutor(16) as threads:
        pairs = [*threads.map(ask_both, range(100))]
    assert {status for _, status in pairs} == {200}
    assert {answer.status_code for answer, _ in pairs} == {200, 429}
    refused = next(answer for answer, _ in pairs if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "explanation is under way" in refused.json()["detail"]


def three_classes():
    """A graph of the probabilities of three classes: softmax of days · (0.01, 0, -0.01)."""
    nodes = """
        days = Cast <to = 1> (days_since_last_order)
        column = Unsqueeze (days, last)
        sums = MatMul (column, weights)
        score = Softmax (sums)"""
    weights = "float[1, 3] weights = {0.01, 0.0, -0.01}, int64[1] last = {1}"
    return onnx_graph(SPEC.features, nodes, weights, score="float[N, 3]")


CLASSES = {"threshold": None, "classes": ("late", "on_time", "early")}
THREE = contract().model_copy(update=CLASSES)
SPEC_OF_THREE = NUMBERS.model_copy(update=CLASSES | {"task": "multiclass"})


@pytest.mark.parametrize(
    ("contract", "spec", "graph", "column"),
    [
        (NUMBER, NUMBERS, tiny_onnx(-89.0, "Identity"), 0),
        (THREE, SPEC_OF_THREE, three_classes(), 2),
    ],
    ids=["regression", "multiclass"],
)
def test_contributions_are_of_the_predicted_class_against_rows_of_the_training(
    rig, tmp_path, contract, spec, graph, column
):
    contract = contract.model_copy(update={"background": BACKGROUND})
    opened = opened_version(tmp_path, contract, graph, spec)
    source = FeatureSource(rig.settings, None)
    model = LoadedModel("1", Origin(created=0, digests={}), *opened, source)
    row = FEATURES | {"days_since_last_order": 160}
    explanation = explain_score(model, row, prediction=column)
    scores = score(model.session, contract, [*BACKGROUND, row])
    *background_scores, row_score = np.reshape(scores, (4, -1))[:, column]
    mean = np.mean(background_scores)
    assert explanation["expected"] == pytest.approx(mean, rel=1e-5)
    first, *rest = explanation["contributions"].items()
    part = pytest.approx(row_score - mean, rel=1e-4, abs=1e-6 * abs(mean))
    assert first == ("days_since_last_order", {"value": 160, "contribution": part})
    assert {other["contribution"] for _, other in rest} == {0.0}

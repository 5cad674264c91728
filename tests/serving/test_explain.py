"""Why a prediction is what it is: `/explain` of the real server, and of versions of every task."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mlflow_server.served_model import (
    CONTRACT_FILE,
    ONNX_FILE,
    SCORE,
    ServedModel,
    digest_tags,
)
from serving.copies import Origin
from serving.explanation import explain
from serving.features import FeatureSource
from serving.model import LoadedModel, score
from serving.opening import open_version
from tests.serving.conftest import (
    FEATURE_TYPES,
    FEATURES,
    KNOWN,
    SPEC,
    contract,
    onnx_graph,
    tiny_onnx,
)
from tests.serving.test_numbers import NUMBER, NUMBERS
from tests.serving.test_roles import end, give

PATHS = ("/explain", f"/models/{SPEC.name}/explain")
BACKGROUND = tuple(
    FEATURES | {"days_since_last_order": days, "avg_order_value": value}
    for days, value in ((0, 3.5), (40, None), (90, 20.08))
)


def chance(days: float, bias: float = -1.0) -> float:
    """What the tiny model says."""
    return float(1 / (1 + np.exp(-(0.01 * days + bias))))


def ask(client: Any, path: str = "/explain", **body: Any) -> Any:
    return client.post(path, json={"customer_id": KNOWN} | body)


def counted(client: Any, metric: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


@pytest.mark.parametrize("path", PATHS)
def test_an_explanation_adds_up_to_what_predict_answers(
    rig: Any, served: Any, path: str
) -> None:
    prediction = rig.predict_online(served.client).json()
    answer = rig.online(lambda: ask(served.client, path))
    assert answer.status_code == 200, answer.text
    explanation = answer.json()
    for name in prediction.keys() - {"request_id", "logged"}:
        assert explanation[name] == prediction[name]
    assert explanation["model"] == SPEC.name
    contributions = explanation["contributions"].values()
    parts = [part["contribution"] for part in contributions]
    assert parts == sorted(parts, key=abs, reverse=True)
    total = explanation["expected"] + sum(parts)
    assert total == pytest.approx(prediction["probability"], abs=1e-5)


def test_a_version_without_a_background_is_explained_against_its_defaults(
    served: Any,
) -> None:
    features = FEATURES | {"days_since_last_order": 150, "lifetime_orders": 99}
    explanation = ask(served.client, features=features).json()
    base = chance(FEATURES["days_since_last_order"])
    assert explanation["features_from"] == "request"
    assert explanation["expected"] == pytest.approx(base, abs=2e-6)
    first, *others = explanation["contributions"].items()
    difference = pytest.approx(chance(150) - base, abs=2e-6)
    expected = {"value": 150, "contribution": difference}
    assert first == ("days_since_last_order", expected)
    assert {part["contribution"] for _, part in others} == {0.0}
    assert dict(others)["lifetime_orders"]["value"] == 99


def test_it_is_no_prediction_and_is_counted_as_a_request(rig: Any, served: Any) -> None:
    def counts() -> list[float]:
        predictions = counted(served.client, "gyre_predictions_total")
        return [len(rig.rows()), predictions]

    before = counts()
    metric = f'gyre_requests_total{{model="{SPEC.name}",route="/explain",status="200"}}'
    requests = counted(served.client, metric)
    assert ask(served.client).status_code == 200
    assert counts() == before
    assert counted(served.client, metric) == requests + 1


def test_what_cannot_be_explained_is_refused_as_predict_refuses_it(
    rig: Any, served: Any
) -> None:
    for status, reason, path, body in (
        (404, "customer_id 99999999", "/explain", {"customer_id": 99_999_999}),
        (404, "nobody", "/models/nobody/explain", {}),
        (422, "shoe_size", "/explain", {"shoe_size": 44}),
    ):
        answer = rig.online(lambda: ask(served.client, path, **body))  # noqa: B023
        assert answer.status_code == status
        assert reason in answer.text


def test_one_is_explained_at_a_time_and_predictions_go_on(
    rig: Any, served: Any
) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = [*threads.map(lambda _: ask(served.client), range(200))]
        predictions = [*threads.map(lambda _: rig.predict(served.client), range(50))]
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "explanation is under way" in refused.json()["detail"]
    assert {answer.status_code for answer in predictions} == {200}
    assert ask(served.client).status_code == 200


def test_a_challengers_answer_is_explained_where_it_answers(
    rig: Any, served: Any
) -> None:
    give(rig, served.second, "challenger")
    rig.answers_as(served.client, served.second)
    explanation = ask(served.client).json()
    assert explanation["model_version"] == served.second
    base = chance(FEATURES["days_since_last_order"], 0.5)
    assert explanation["expected"] == pytest.approx(base, abs=2e-6)
    end(rig, "challenger")
    rig.answers_as(served.client, served.first)


def three_classes() -> Any:
    """A graph of the probabilities of three classes: softmax of days · (0.01, 0, -0.01)."""
    days = "days_since_last_order"
    nodes = [
        helper.make_node("Cast", [days], ["days"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["days", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "weights"], ["sums"]),
        helper.make_node("Softmax", ["sums"], [SCORE]),
    ]
    weights = [
        helper.make_tensor("weights", TensorProto.FLOAT, [1, 3], [0.01, 0, -0.01]),
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
    ]
    return onnx_graph(nodes, FEATURE_TYPES, weights, classes=[3])


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
def test_of_every_task_the_sum_is_the_score_that_is_answered(
    rig: Any,
    tmp_path: Any,
    served_model: ServedModel,
    spec: Any,
    graph: Any,
    prediction: float,
) -> None:
    model_with_rows = served_model.model_copy(update={"background": BACKGROUND})
    (tmp_path / ONNX_FILE).write_bytes(graph.SerializeToString())
    (tmp_path / CONTRACT_FILE).write_text(model_with_rows.model_dump_json())
    tags = digest_tags(tmp_path)
    read, session = open_version(tmp_path, tags, spec)
    source = FeatureSource(rig.settings, None)
    model = LoadedModel("1", Origin(created=0, digests=tags), read, session, source)
    row = FEATURES | {"days_since_last_order": 160}
    explanation = explain(model, row, prediction)

    def scores(rows: Any) -> Any:
        results = np.array(score(session, read, rows))
        return results.reshape(len(rows), -1)[:, 0]

    mean = float(scores(BACKGROUND).mean())
    assert explanation["expected"] == pytest.approx(mean, rel=1e-5)
    first, *others = explanation["contributions"].items()
    difference = scores([row])[0] - mean
    part = pytest.approx(difference, rel=1e-4, abs=1e-6 * abs(mean))
    assert first == ("days_since_last_order", {"value": 160, "contribution": part})
    assert {other["contribution"] for _, other in others} == {0.0}

"""Why a prediction is what it is: `/explain` of the real server, and of versions of every task."""

from __future__ import annotations

from collections import Counter
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
from serving.features import FeatureSource
from serving.model import LoadedModel, Origin, explain, open_version, score
from tests.conftest import wait_until
from tests.serving.conftest import (
    FEATURES,
    KNOWN,
    ONNX_TYPES,
    SPEC,
    contract,
    tiny_onnx,
)
from tests.serving.test_numbers import NUMBER, NUMBERS

PATHS = ("/explain", f"/models/{SPEC.name}/explain", "/models/churn-predictor/explain")
BACKGROUND = tuple(
    FEATURES | {"days_since_last_order": days, "avg_order_value": spent}
    for days, spent in ((0, 3.5), (40, None), (90, 20.08))
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
    predicted = rig.predict_online(served.client).json()
    answer = ask(served.client, path)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    why = {name: found.pop(name) for name in ("model", "expected", "contributions")}
    left_out = {
        "request_id",
        "logged",
        "features_from",
    }  # a busy Redis is read from the cache
    assert found.keys() == predicted.keys() - {"request_id", "logged"}
    assert {name: found[name] for name in predicted.keys() - left_out} == {
        name: predicted[name] for name in predicted.keys() - left_out
    }
    assert why["model"] == SPEC.name
    parts = {name: part["contribution"] for name, part in why["contributions"].items()}
    assert list(parts) == sorted(parts, key=lambda name: -abs(parts[name]))
    total = why["expected"] + sum(parts.values())
    assert total == pytest.approx(found["probability"], abs=1e-5)


def test_a_version_without_a_background_is_explained_against_its_defaults(
    served: Any,
) -> None:
    given = FEATURES | {"days_since_last_order": 150, "lifetime_orders": 99}
    found = ask(served.client, features=given).json()
    base = chance(FEATURES["days_since_last_order"])
    assert found["features_from"] == "request"
    assert found["expected"] == pytest.approx(base, abs=2e-6)
    first, *others = found["contributions"].items()
    moved = pytest.approx(chance(150) - base, abs=2e-6)
    assert first == ("days_since_last_order", {"value": 150, "contribution": moved})
    assert {each["contribution"] for _, each in others} == {0.0}
    assert dict(others)["lifetime_orders"]["value"] == 99


def test_it_is_no_prediction_and_is_counted_as_a_request(rig: Any, served: Any) -> None:
    metrics = (
        "gyre_predictions_total",
        "gyre_prediction_failures_total",
        "gyre_overloaded_total",
    )
    before = [len(rig.rows()), *(counted(served.client, metric) for metric in metrics)]
    asked = f'gyre_requests_total{{model="{SPEC.name}",route="/explain",status="200"}}'
    requests = counted(served.client, asked)
    assert ask(served.client).status_code == 200
    after = [len(rig.rows()), *(counted(served.client, metric) for metric in metrics)]
    assert after == before
    assert counted(served.client, asked) == requests + 1


def test_what_cannot_be_explained_is_refused_as_predict_refuses_it(
    rig: Any, served: Any
) -> None:
    for status, said, path, body in (
        (404, "customer_id 99999999", "/explain", {"customer_id": 99_999_999}),
        (404, "nobody", "/models/nobody/explain", {}),
        (422, "shoe_size", "/explain", {"shoe_size": 44}),
        (
            422,
            "lifetime_value",
            "/explain",
            {"features": FEATURES | {"lifetime_value": "much"}},
        ),
        (422, "query.merge", "/explain?merge=perhaps", {}),
    ):
        answer = rig.online(lambda: ask(served.client, path, **body))  # noqa: B023
        assert answer.status_code == status
        assert said in answer.text
    assert served.client.get("/explain").status_code == 405
    assert served.client.post("/explain", content=b" " * 2_000_000).status_code == 413


def test_one_is_explained_at_a_time_and_predictions_go_on(
    rig: Any, served: Any
) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = [*threads.map(lambda _: ask(served.client), range(200))]
        predictions = [*threads.map(lambda _: rig.predict(served.client), range(50))]
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "explanation is under way" in refused.json()["detail"]
    assert {answer.status_code for answer in predictions} == {200}
    assert ask(served.client).status_code == 200


def test_a_challengers_answer_is_explained_where_it_answers(
    rig: Any, served: Any
) -> None:
    from tests.serving.test_roles import end, give  # noqa: PLC0415  (not its fixtures)

    give(rig, served.second, "challenger")
    wait_until(
        "it",
        lambda: rig.predict(served.client).json()["model_version"] == served.second,
    )
    found = ask(served.client).json()
    assert found["model_version"] == served.second
    base = chance(FEATURES["days_since_last_order"], 0.5)
    assert found["expected"] == pytest.approx(base, abs=2e-6)
    end(rig, "challenger")
    wait_until(
        "the end", lambda: ask(served.client).json()["model_version"] == served.first
    )


def test_the_document_shows_it_with_an_example(served: Any) -> None:
    document = served.client.get("/openapi.json").json()
    assert {*PATHS} <= document["paths"].keys()
    shown = document["components"]["schemas"]["CustomerChurnModelExplanation"][
        "properties"
    ]
    assert list(shown) == list(ask(served.client).json())
    (example,) = shown["contributions"]["examples"]
    assert example == {next(iter(SPEC.features)): {"value": 7, "contribution": 0.31}}


def three_classes() -> Any:
    """A graph of the probabilities of three classes: softmax of days · (0.01, 0, -0.01)."""
    inputs = [
        helper.make_tensor_value_info(name, ONNX_TYPES[kind], [None])
        for name, kind in SPEC.features.items()
    ]
    nodes = [
        helper.make_node(
            "Cast", ["days_since_last_order"], ["days"], to=TensorProto.FLOAT
        ),
        helper.make_node("Unsqueeze", ["days", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "weights"], ["sums"]),
        helper.make_node("Softmax", ["sums"], [SCORE]),
    ]
    graph = helper.make_graph(
        nodes, "three", inputs,
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [1, 3], [0.01, 0, -0.01]),
         helper.make_tensor("last", TensorProto.INT64, [1], [1])],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


NAMES = ("late", "on_time", "early")
THREE = contract().model_copy(update={"threshold": None, "classes": NAMES})
CLASSES = {"task": "multiclass", "classes": NAMES, "threshold": None, "costs": None}


@pytest.mark.parametrize(
    ("held", "spec", "graph", "prediction"),
    [
        (contract(), SPEC, tiny_onnx(-1.0), 1.0),
        (NUMBER, NUMBERS, tiny_onnx(-89.0, "Identity"), -87.4),
        (THREE, SPEC.model_copy(update=CLASSES), three_classes(), 0.0),
    ],
    ids=["classification", "regression", "multiclass"],
)
def test_of_every_task_the_sum_is_the_score_that_is_answered(
    rig: Any, tmp_path: Any, held: ServedModel, spec: Any, graph: Any, prediction: float
) -> None:
    held = held.model_copy(update={"background": BACKGROUND})
    (tmp_path / ONNX_FILE).write_bytes(graph.SerializeToString())
    (tmp_path / CONTRACT_FILE).write_text(held.model_dump_json())
    tags = digest_tags(tmp_path)
    read, session = open_version(tmp_path, tags, spec)
    assert read == held
    source = FeatureSource(rig.settings, None)
    model = LoadedModel("1", Origin(created=0, digests=tags), read, session, source)
    row = FEATURES | {"days_since_last_order": 160}
    why = explain(model, row, prediction)

    def said(rows: Any) -> list[float]:
        return [s[0] if isinstance(s, list) else s for s in score(session, read, rows)]

    mean = float(np.mean(said(BACKGROUND)))
    assert why["expected"] == pytest.approx(mean, rel=1e-5)
    first, *others = why["contributions"].items()
    moved = pytest.approx(said([row])[0] - mean, rel=1e-4, abs=1e-6 * abs(mean))
    assert first == ("days_since_last_order", {"value": 160, "contribution": moved})
    assert {each["contribution"] for _, each in others} == {0.0}

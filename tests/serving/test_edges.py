"""What clients send wrongly, and what they then get: 4xx naming it, in strict JSON."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from core.spec import MISSING
from tests.serving.conftest import body_of

NOBODY = 99_999_999
DEEP = b"[" * 100_000 + b"]" * 100_000
ERROR = {"v1": "error", "v2": "error", "mlflow": "message"}
"""The field of an error that says what is wrong; `detail` of Gyre's own."""
PATHS = {
    "plain": "/predict",
    "batch": "/predict/batch",
    "v1": "/v1/models/customer_churn_model:predict",
    "v2": "/v2/models/customer_churn_model/infer",
    "mlflow": "/invocations",
}
NO_MODEL = {
    "plain": "/models/nobody/predict",
    "batch": "/models/nobody/predict/batch",
    "v1": "/v1/models/nobody:predict",
    "v2": "/v2/models/nobody/infer",
    "mlflow": "/models/nobody/invocations",
}
every_protocol = pytest.mark.parametrize("protocol", PATHS)


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def error_of(answer: Any, protocol: str) -> str:
    return str(strict(answer.text)[ERROR.get(protocol, "detail")])


def refused(answer: Any, protocol: str) -> str:
    """What is wrong, in the protocol's form and with its status."""
    assert answer.status_code == (400 if protocol in ERROR else 422)
    assert answer.headers["content-type"] == "application/json"
    return error_of(answer, protocol)


def test_each_answer_has_every_field_and_is_in_the_log_as_it_was_given(
    rig: Any, served: Any
) -> None:
    for key in (4, 8, 4):
        answer = rig.predict_online(served.client, key)
        assert answer.status_code == 200
        body = strict(answer.text)
        assert list(body) == [
            "customer_id", "prediction", "probability", "model_version", "request_id",
            "features_from", "in_population", "logged",
        ]  # fmt: skip
        assert body["prediction"] == float(body["probability"] >= 0.5)
        assert body["model_version"] == served.first
        assert body["features_from"] == "online"
        assert body["logged"] is True
        row = rig.row_of(answer)
        for name in ("prediction", "probability", "features_from", "in_population"):
            assert row[name] == body[name]
        assert (row["entity"], row["version"]) == (str(key), served.first)
        assert list(row["features"]) == list(rig.spec.features)
        assert row["as_of"].endswith("+00:00")


@every_protocol
def test_an_unknown_customer_is_404_and_named_unless_features_are_given(
    rig: Any, served: Any, protocol: str
) -> None:
    def ask(row: dict[str, Any]) -> Any:
        body = body_of(protocol, row)
        return rig.online(lambda: served.client.post(PATHS[protocol], json=body))

    key = {"customer_id": NOBODY}
    unknown = ask(key)
    assert unknown.status_code == 404
    assert f"customer_id {NOBODY}" in error_of(unknown, protocol)
    features = rig.features if protocol in ERROR else {"features": rig.features}
    answer = ask(key | features)
    assert answer.status_code == 200
    assert "request" in answer.text


@pytest.mark.parametrize(
    "change",
    [
        {"total_spend_30d": float("nan")}, {"total_spend_30d": float("inf")},
        {"lifetime_value": 1e39}, {"total_spend_30d": "many"}, {"total_spend_30d": None},
        {"total_spend_30d": True}, {"total_spend_30d": [1.5]}, {"total_orders_30d": 1.5},
        {"total_orders_30d": 2**63}, {"customer_segment": 3}, {"customer_segment": {"a": 1}},
        {"shoe_size": 44},
    ],
)  # fmt: skip
def test_a_wrong_feature_is_4xx_and_named(
    rig: Any, served: Any, change: dict[str, Any]
) -> None:
    (name,) = change
    for protocol, path in PATHS.items():
        body = json.dumps(body_of(protocol, rig.features | change))
        answer = served.client.post(path, content=body)
        assert name in refused(answer, protocol)
        if protocol not in ERROR:
            assert [error["loc"][-1] for error in answer.json()["detail"]] == [name]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"{}", b'"x"', b"4", b"\xff\xfe", DEEP,
        b'{"inputs": ' + DEEP + b"}",
        b'{"instances": ' + b'[{"customer_id": ' * 20_000,
        b'{"instances": [{"customer_id": "4"}]}',
        b'{"instances": [{"customer_id": 1' + b"0" * 5000 + b"}]}",
        json.dumps({"instances": [{"customer_id": 4}] * 10_001}).encode(),
        json.dumps({"instances": [{"lifetime_orders": 1}]}).encode(),
        b'{"customer_id": "4"}', b'{"customer_id": 4.5}', b'{"customer_id": 4, "x": 1}',
        b'{"customer_id": 1' + b"0" * 5000 + b"}", b'{"customer_id": 4, "features": null}',
        b'{"customer_id": 4, "features": ' + DEEP + b"}",
        b'{"customer_id": 4, "features": {"customer_segment": "\\ud800"}}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_4xx_in_every_protocol(
    served: Any, body: bytes
) -> None:
    for protocol, path in PATHS.items():
        assert refused(served.client.post(path, content=body), protocol)


@every_protocol
def test_what_is_wrong_around_a_body_is_said_in_the_form_of_the_protocol(
    rig: Any, served: Any, protocol: str
) -> None:
    path = PATHS[protocol]
    client = served.client
    row = json.dumps(body_of(protocol, rig.features))
    for kind in ("application/x-www-form-urlencoded", "text/csv", ""):
        answer = client.post(path, content=row, headers={"content-type": kind})
        assert (answer.status_code, "content-type" in answer.text) == (415, True)
    answer = client.post(path, content=b"", headers={"content-encoding": "gzip"})
    assert (answer.status_code, "content-encoding" in answer.text) == (415, True)
    for method in ("GET", "PUT", "OPTIONS"):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert error_of(answer, protocol)
    unknown = client.post(NO_MODEL[protocol], content=row)
    assert unknown.status_code == 404
    assert "there is customer_churn_model" in error_of(unknown, protocol)
    codes = {"mlflow": "RESOURCE_DOES_NOT_EXIST"}
    assert unknown.json().get("error_code") == codes.get(protocol)
    assert client.post(f"{path}x", content=row).status_code in {404, 405}


@every_protocol
def test_a_body_over_the_limit_is_413_before_it_is_read(
    served: Any, protocol: str
) -> None:
    url = served.client.base_url
    path = PATHS[protocol]
    with socket.create_connection((url.host, url.port), timeout=600) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: gyre\r\ncontent-length: 100000000\r\n"
        connection.sendall(f"{head}\r\n".encode())
        # To its end: the connection is closed.
        answer = connection.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 413 ")
    body = strict(answer.partition("\r\n\r\n")[2])
    assert "over 1" in body[ERROR.get(protocol, "detail")]

    def endless() -> Any:
        while True:
            yield b" " * 65_536

    assert served.client.post(path, content=endless()).status_code == 413


def test_a_part_of_the_features_is_not_enough_and_the_others_are_named(
    rig: Any, served: Any
) -> None:
    names = {"avg_order_value", "lifetime_value"}
    part = {name: value for name, value in rig.features.items() if name not in names}
    for protocol, path in PATHS.items():
        answer = served.client.post(path, json=body_of(protocol, part))
        reason = refused(answer, protocol)
        assert all(name in reason for name in names)


def test_of_a_key_that_is_there_twice_the_last_counts(served: Any) -> None:
    body = b'{"customer_id": 99999999, "customer_id": 4}'
    answer = served.client.post("/predict", content=body)
    assert (answer.status_code, answer.json()["customer_id"]) == (200, 4)


def test_batches_answer_in_order_and_have_a_limit(rig: Any, served: Any) -> None:
    def send(rows: list[Any]) -> Any:
        return served.client.post("/predict/batch", json=rows)

    row = {"customer_id": NOBODY, "features": rig.features}
    batch = [{"customer_id": 8}, row, {"customer_id": 4}]
    answers = rig.online(lambda: send(batch)).json()
    assert [answer["customer_id"] for answer in answers] == [8, NOBODY, 4]
    origins = [answer["features_from"] for answer in answers]
    assert origins == ["online", "request", "online"]
    large = send([{"customer_id": 4}] * 3_000)
    assert (large.status_code, len(large.json())) == (200, 3_000)
    assert send([{"customer_id": 4}] * 10_001).status_code == 422
    wrong = send([{"customer_id": 4}, {"customer_id": "x"}])
    assert wrong.json()["detail"][0]["loc"] == ["body", 1, "customer_id"]


def test_a_feature_that_was_null_in_training_may_be_null(rig: Any, served: Any) -> None:
    row = rig.features | {"avg_order_value": None, "customer_segment": None}
    for protocol, path in PATHS.items():
        answer = served.client.post(path, json=body_of(protocol, row))
        assert answer.status_code == 200, answer.text
        if protocol == "plain":
            features = rig.row_of(answer)["features"]
            assert features["avg_order_value"] is None
            assert features["customer_segment"] == MISSING


def test_metrics_tell_what_serves(rig: Any, served: Any) -> None:
    rig.predict_online(served.client)
    text = served.client.get("/metrics").text
    role = f'model="{rig.spec.name}",role="production"'
    for line in (
        f'gyre_model_info{{{role},version="{served.first}"}} 1.0',
        'gyre_requests_total{model="customer_churn_model",route="/predict",status="200"}',
        "gyre_feature_watermark_age_seconds{",
        'gyre_predictions_total{features_from="online"',
        "gyre_prediction_seconds_bucket{",
    ):
        assert line in text


def test_the_first_page_says_what_this_is_and_where_to_read_on(
    rig: Any, served: Any
) -> None:
    console = f"{rig.settings.console_address}/"
    page = {"name": "Gyre serving", "docs": "/docs", "console": console}
    assert served.client.get("/").json() == page

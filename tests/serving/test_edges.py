"""What clients send wrongly, and what they then get: 4xx naming it, in strict JSON."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.spec import MISSING
from serving.app import form_of
from serving.edge import refusal
from serving.errors import OverloadedError
from tests.serving.conftest import contract

DEEP = b"[" * 100_000 + b"]" * 100_000


def strict(text: str) -> Any:
    def refuse(found: str) -> Any:
        raise AssertionError(f"{found} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_an_answer_has_every_field_of_the_design(rig: Any, served: Any) -> None:
    answer = rig.predict_online(served.client)
    assert answer.status_code == 200
    body = strict(answer.text)
    assert list(body) == [
        "customer_id", "prediction", "probability", "model_version", "request_id",
        "features_from", "in_population", "logged",
    ]  # fmt: skip
    assert body["customer_id"] == 4
    assert body["prediction"] == float(body["probability"] >= 0.5)
    assert (body["model_version"], body["features_from"]) == (served.first, "online")
    assert body["logged"] is True


@pytest.mark.parametrize("path", ["/predict", "/models/churn-predictor/predict"])
def test_an_unknown_customer_is_404_and_named_unless_features_are_given(
    rig: Any, served: Any, path: str
) -> None:
    answer = rig.online(
        lambda: served.client.post(path, json={"customer_id": 99_999_999})
    )
    assert answer.status_code == 404
    assert "customer_id 99999999" in answer.json()["detail"]
    body = {"customer_id": 99_999_999, "features": rig.features}
    answer = served.client.post(path, json=body)
    assert (answer.status_code, answer.json()["features_from"]) == (200, "request")


DATATYPES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
ERROR = {"v1": "error", "v2": "error", "mlflow": "message"}
PATHS = {
    "plain": "/predict", "merged": "/predict?merge=true", "batch": "/predict/batch",
    "v1": "/v1/models/churn-predictor:predict", "v2": "/v2/models/churn-predictor/infer",
    "mlflow": "/invocations",
}  # fmt: skip

NOBODY = {
    "plain": "/models/nobody/predict", "merged": "/models/nobody/predict?merge=true",
    "batch": "/models/nobody/predict/batch", "v1": "/v1/models/nobody:predict",
    "v2": "/v2/models/nobody/infer", "mlflow": "/models/nobody/invocations",
}  # fmt: skip


def body_of(rig: Any, protocol: str, row: dict[str, Any]) -> Any:
    """A row of features in the form of a protocol."""
    if protocol == "v1":
        return {"instances": [row]}
    if protocol == "mlflow":
        return {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}
    if protocol == "v2":
        return {"inputs": [
            {"name": name, "shape": [1], "data": [value],
             "datatype": DATATYPES[rig.spec.features.get(name, "int64")]}
            for name, value in row.items()
        ]}  # fmt: skip
    one = {"customer_id": 4, "features": row}
    return [one] if protocol == "batch" else one


def says(answer: Any, protocol: str) -> str:
    """What is wrong, in the protocol's form and with its status."""
    assert answer.status_code == (400 if protocol in ERROR else 422)
    assert answer.headers["content-type"] == "application/json"
    return str(strict(answer.text)[ERROR.get(protocol, "detail")])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"total_spend_30d": float("nan")}, "total_spend_30d"),
        ({"total_spend_30d": float("inf")}, "total_spend_30d"),
        ({"lifetime_value": 1e39}, "lifetime_value"),
        ({"total_spend_30d": "many"}, "total_spend_30d"),
        ({"total_spend_30d": None}, "total_spend_30d"),
        ({"total_spend_30d": True}, "total_spend_30d"),
        ({"total_spend_30d": [1.5]}, "total_spend_30d"),
        ({"total_orders_30d": 1.5}, "total_orders_30d"),
        ({"total_orders_30d": 2**63}, "total_orders_30d"),
        ({"total_orders_30d": True}, "total_orders_30d"),
        ({"customer_segment": 3}, "customer_segment"),
        ({"customer_segment": {"a": 1}}, "customer_segment"),
        ({"shoe_size": 44}, "shoe_size"),
    ],
)
@pytest.mark.parametrize("protocol", PATHS)
def test_a_wrong_feature_is_4xx_and_named(
    rig: Any, served: Any, change: dict[str, Any], named: str, protocol: str
) -> None:
    body = json.dumps(body_of(rig, protocol, rig.features | change))
    answer = served.client.post(PATHS[protocol], content=body)
    said = says(answer, protocol)
    if protocol in {"plain", "merged", "batch"}:
        assert [error["loc"][-1] for error in answer.json()["detail"]] == [named]
    elif protocol == "mlflow" and isinstance(change[named], list | dict):
        assert (
            f"data.0.{(*rig.features, named).index(named)}" in said
        )  # which column of the row
    else:
        assert named in said


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"{}", b'"x"', b"4", b"\xff\xfe", DEEP,
        b'{"inputs": ' + DEEP + b"}",
        b'{"instances": ' + b'[{"customer_id": ' * 20_000, b'{"instances": []}',
        b'{"instances": [{"customer_id": "4"}]}', b'{"dataframe_records": [null]}',
        b'{"inputs": [{"name": "customer_id", "shape": [1], "datatype": "INT64", "data": ["4"]}]}',
        b'{"instances": [{"customer_id": 1' + b"0" * 5000 + b"}]}",
        json.dumps({"instances": [{"customer_id": 4}] * 10_001}).encode(),
        json.dumps({"instances": [{"lifetime_orders": 1}]}).encode(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", PATHS)
def test_a_body_that_is_no_request_is_4xx_in_every_protocol(
    served: Any, body: bytes, protocol: str
) -> None:
    assert says(served.client.post(PATHS[protocol], content=body), protocol)


@pytest.mark.parametrize("protocol", PATHS)
def test_what_is_wrong_around_a_body_is_said_in_the_form_of_the_protocol(
    rig: Any, served: Any, protocol: str
) -> None:
    path, client = PATHS[protocol], served.client
    row = json.dumps(body_of(rig, protocol, dict(rig.features)))
    for kind in ("application/x-www-form-urlencoded", "text/plain", "text/csv", ""):
        answer = client.post(path, content=row, headers={"content-type": kind})
        assert (answer.status_code, "content-type" in answer.text) == (415, True)
    answer = client.post(path, content=b"", headers={"content-encoding": "gzip"})
    assert (answer.status_code, "content-encoding" in answer.text) == (415, True)
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert ERROR.get(protocol, "detail") in strict(answer.text)
    for wrong in (NOBODY[protocol], path.partition("?")[0] + "x"):
        answer = client.post(wrong, content=row)
        assert answer.status_code == 404
        assert set(strict(answer.text)) & {"detail", "error", "message"}
    if protocol == "mlflow":
        assert (
            client.post(NOBODY[protocol]).json()["error_code"]
            == "RESOURCE_DOES_NOT_EXIST"
        )


@pytest.mark.parametrize("protocol", PATHS)
def test_an_unknown_customer_is_404_in_every_protocol(
    rig: Any, served: Any, protocol: str
) -> None:
    key = {"customer_id": 99_999_999}
    body: Any = {"plain": key, "merged": key, "batch": [key]}.get(protocol)
    body = body or body_of(rig, protocol, key)
    answer = rig.online(lambda: served.client.post(PATHS[protocol], json=body))
    assert answer.status_code == 404
    assert "customer_id 99999999" in strict(answer.text)[ERROR.get(protocol, "detail")]


@pytest.mark.parametrize("protocol", PATHS)
def test_a_body_of_100_mb_is_413_before_it_is_sent(served: Any, protocol: str) -> None:
    url = served.client.base_url
    with socket.create_connection((url.host, url.port), timeout=600) as sent:
        head = f"POST {PATHS[protocol]} HTTP/1.1\r\nhost: gyre\r\ncontent-length: 100000000\r\n\r\n"
        sent.sendall(head.encode())
        answer = (
            sent.makefile("rb").read().decode()
        )  # to its end: the connection is closed
    assert answer.startswith("HTTP/1.1 413 ")
    assert (
        "over 1"
        in strict(answer.partition("\r\n\r\n")[2])[ERROR.get(protocol, "detail")]
    )


def test_missing_features_are_named_or_merged(rig: Any, served: Any) -> None:
    some = {
        k: v
        for k, v in rig.features.items()
        if k not in {"avg_order_value", "lifetime_value"}
    }
    body = {"customer_id": 4, "features": some}
    answer = served.client.post("/predict", json=body)
    assert answer.status_code == 422
    names = {error["loc"][-1] for error in answer.json()["detail"]}
    assert names == {"avg_order_value", "lifetime_value"}
    merged = rig.online(lambda: served.client.post("/predict?merge=true", json=body))
    assert (merged.status_code, merged.json()["features_from"]) == (200, "merged")
    assert served.client.post("/predict?merge=perhaps", json=body).status_code == 422
    complete = {"customer_id": 99_999_999, "features": rig.features}
    assert (
        served.client.post("/predict?merge=1", json=complete).json()["features_from"]
        == "request"
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"customer_id": "4"}', 422), (b'{"customer_id": 4.5}', 422), (b"{}", 422),
        (b'{"customer_id": 4, "x": 1}', 422), (b'{"customer_id": 1' + b"0" * 5000 + b"}", 422),
        (b'{"customer_id": 4, "features": ' + DEEP + b"}", 422),
        (b'{"customer_id": 4, "features": {"customer_segment": "\\ud800"}}', 422),
        (b" " * 1_000_001, 413), (b'{"customer_id": 9223372036854775807}', 404),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_4xx(
    served: Any, body: bytes, status: int
) -> None:
    answer = served.client.post("/predict", content=body)
    assert answer.status_code == status
    assert strict(answer.text)["detail"]


@pytest.mark.parametrize("protocol", PATHS)
def test_a_body_without_end_is_cut_off_at_the_limit(served: Any, protocol: str) -> None:
    def endless() -> Any:
        while True:
            yield b" " * 65_536

    answer = served.client.post(PATHS[protocol], content=endless())
    assert answer.status_code == 413


def test_of_a_key_that_is_there_twice_the_last_counts(served: Any) -> None:
    answer = served.client.post(
        "/predict", content=b'{"customer_id": 99999999, "customer_id": 4}'
    )
    assert (answer.status_code, answer.json()["customer_id"]) == (200, 4)


@pytest.mark.parametrize("protocol", PATHS)
def test_too_much_to_do_is_429_with_the_time_to_wait(protocol: str) -> None:
    form = form_of(PATHS[protocol])
    answer = refusal(OverloadedError("1,000 requests wait"), form)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    body = strict(bytes(answer.body).decode())
    assert body[ERROR.get(protocol, "detail")] == "1,000 requests wait"
    assert body.get("error_code") == (
        "REQUEST_LIMIT_EXCEEDED" if protocol == "mlflow" else None
    )


def test_batches_answer_in_order_and_have_a_limit(rig: Any, served: Any) -> None:
    row = {"customer_id": 99_999_999, "features": rig.features}
    batch = [{"customer_id": 8}, row, {"customer_id": 4}]
    answer = rig.online(lambda: served.client.post("/predict/batch", json=batch))
    assert [a["customer_id"] for a in answer.json()] == [8, 99_999_999, 4]
    assert [a["features_from"] for a in answer.json()] == [
        "online",
        "request",
        "online",
    ]
    many = served.client.post("/predict/batch", json=[{"customer_id": 4}] * 3_000)
    assert (many.status_code, len(many.json())) == (200, 3_000)
    assert (
        served.client.post(
            "/predict/batch", json=[{"customer_id": 4}] * 10_001
        ).status_code
        == 422
    )
    wrong = served.client.post(
        "/predict/batch", json=[{"customer_id": 4}, {"customer_id": "x"}]
    )
    assert wrong.json()["detail"][0]["loc"] == ["body", 1, "customer_id"]


def test_kserve_takes_keys_and_features(rig: Any, served: Any) -> None:
    for name in ("customer_churn_model", "churn-predictor"):
        assert served.client.get(f"/v1/models/{name}").json() == {
            "name": name,
            "ready": True,
        }
        instances = [
            {"customer_id": 4},
            rig.features,
            rig.features | {"customer_id": 7},
        ]
        answer = served.client.post(
            f"/v1/models/{name}:predict", json={"instances": instances}
        )
        predictions = answer.json()["predictions"]
        assert [p["customer_id"] for p in predictions] == [4, None, 7]
        assert all(0 <= p["score"] <= 1 for p in predictions)
    wrong = served.client.post(
        f"/v1/models/{name}:predict", json={"instances": [{"lifetime_orders": 1}]}
    )
    assert wrong.status_code == 400
    names = ["customer_churn_model", "churn-predictor"]
    assert served.client.get("/v1/models").json() == {"models": names}


def test_an_unknown_model_is_404_and_says_what_there_is(served: Any) -> None:
    for path in (
        "/models/x/predict",
        "/models/x/predict/batch",
        "/v1/models/x:predict",
    ):
        answer = served.client.post(path, json={})
        assert answer.status_code == 404
        assert "customer_churn_model" in str(answer.json())


def test_feedback_is_one_line_each_and_what_contradicts_is_left_to_the_join(
    rig: Any, served: Any
) -> None:
    request_id = rig.predict(served.client).json()["request_id"]

    def send(*pairs: tuple[str, Any]) -> Any:
        rows = [{"request_id": key, "actual": actual} for key, actual in pairs]
        return served.client.post("/feedback", json=rows if len(rows) > 1 else rows[0])

    assert send((request_id, 1)).json() == {"recorded": 1, "logged": True}
    assert send(("new", 0), (request_id, 0)).json() == {"recorded": 2, "logged": True}
    for wrong in (2, 0.5, "1", True, None):
        assert send((request_id, wrong)).status_code == 422
        assert send(("other", 1), (request_id, wrong)).status_code == 422
    sent = {request_id, "new", "other"}
    told = [(row["request_id"], row["actual"]) for row in rig.rows("feedback")]
    lines = [line for line in told if line[0] in sent]
    assert lines == [(request_id, 1.0), ("new", 0.0), (request_id, 0.0)]


def test_each_answer_is_in_the_log_as_it_was_given(rig: Any, served: Any) -> None:
    answers = [rig.predict(served.client, key).json() for key in (4, 8, 4)]
    rows = {row["request_id"]: row for row in rig.rows()}
    for answer in answers:
        row = rows[answer["request_id"]]
        for name in ("prediction", "probability", "features_from", "in_population"):
            assert row[name] == answer[name]
        assert (row["entity"], row["version"]) == (
            str(answer["customer_id"]),
            answer["model_version"],
        )
        assert list(row["features"]) == list(rig.spec.features)
        assert row["as_of"].endswith("+00:00")


def test_docs_show_every_feature_with_its_type(rig: Any, served: Any) -> None:
    document = served.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    shown = schemas["CustomerChurnModelFeatures"]["properties"]
    types = {"int64": "integer", "double": "number", "string": "string"}
    found = {n: {p["type"]} if "type" in p else {each["type"] for each in p["anyOf"]}
             for n, p in shown.items()}  # fmt: skip
    nullable = contract().nullable
    assert found == {
        name: {types[kind], "null"} if name in nullable else {types[kind]}
        for name, kind in rig.spec.features.items()
    }
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"][
        "application/json"
    ]
    assert body["schema"]["$ref"].rpartition("/")[2] in schemas
    assert served.client.get("/docs").status_code == 200


def test_docs_group_each_protocol_and_say_a_sentence_of_each_route(served: Any) -> None:
    document = served.client.get("/openapi.json").json()
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    tags = {tag for operation in operations.values() for tag in operation["tags"]}
    protocols = {"Predictions", "KServe V1", "Open Inference (V2)", "MLflow"}
    assert tags == protocols | {"Events", "Feedback", "Health", "Server"}
    assert all(
        operation["description"].endswith((".", "not."))
        for operation in operations.values()
    )
    for path in (*PATHS.values(), *NOBODY.values()):
        known = path.partition("?")[0].replace("nobody", "churn-predictor")
        assert ("post", known) in operations
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)
    key = document["components"]["schemas"]["CustomerChurnModelKey"]["properties"][
        "customer_id"
    ]
    assert (key["minimum"], key["maximum"]) == (-(2**63), 2**63 - 1)


def test_a_feature_that_was_null_in_training_may_be_null(rig: Any, served: Any) -> None:
    row = rig.features | {"avg_order_value": None, "customer_segment": None}
    for protocol, path in PATHS.items():
        if protocol == "v2":  # its tensors have no null
            continue
        answer = served.client.post(path, json=body_of(rig, protocol, row))
        assert answer.status_code == 200, answer.text
    given = served.client.post(
        "/predict", json={"customer_id": 4, "features": row}
    ).json()
    assert given["features_from"] == "request"
    logged = next(r for r in rig.rows() if r["request_id"] == given["request_id"])
    assert logged["features"]["avg_order_value"] is None
    assert logged["features"]["customer_segment"] == MISSING


def test_metrics_tell_what_serves(rig: Any, served: Any) -> None:
    rig.predict_online(served.client)
    text, named = (
        served.client.get("/metrics").text,
        f'model="{rig.spec.name}",role="production"',
    )
    for line in (
        f'gyre_model_info{{{named},version="{served.first}"}} 1.0',
        'gyre_requests_total{model="customer_churn_model",route="/predict",status="200"}',
        "gyre_feature_watermark_age_seconds{",
        "gyre_request_seconds_bucket{",
        'gyre_predictions_total{features_from="online"', "gyre_prediction_seconds_bucket{",
    ):  # fmt: skip
        assert line in text


def test_the_first_page_says_what_this_is_and_where_to_read_on(
    rig: Any, served: Any
) -> None:
    assert served.client.get("/").json() == {
        "name": "Gyre serving", "docs": "/docs", "console": f"{rig.settings.console_address}/",
    }  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
bodies = json_values | st.fixed_dictionaries(
    {"customer_id": st.integers() | json_values},
    optional={
        "features": st.fixed_dictionaries(
            {"total_orders_30d": st.integers(), "lifetime_value": st.floats()},
            optional={"customer_segment": st.text()},
        )
    },
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    body=bodies,
    path=st.sampled_from(
        ["/predict", "/predict?merge=true", "/predict/batch", "/feedback"]
    ),
)
def test_whatever_is_sent_the_answer_is_strict_json_and_no_5xx(
    served: Any, body: Any, path: str
) -> None:
    answer = served.client.post(path, content=json.dumps(body))
    assert answer.status_code < 500
    strict(answer.text)

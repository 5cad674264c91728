"""What clients send wrongly, and what they then get: 4xx naming it, in strict JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.features import view_path
from stack.status import lines

DEEP = b"[" * 100_000 + b"]" * 100_000


def strict(text: str) -> Any:
    def refuse(found: str) -> Any:
        raise AssertionError(f"{found} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_an_answer_has_every_field_of_the_design(rig: Any, served: Any) -> None:
    answer = rig.predict(served.client)
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
    answer = served.client.post(path, json={"customer_id": 99_999_999})
    assert answer.status_code == 404
    assert "customer_id 99999999" in answer.json()["detail"]
    body = {"customer_id": 99_999_999, "features": rig.features}
    answer = served.client.post(path, json=body)
    assert (answer.status_code, answer.json()["features_from"]) == (200, "request")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"total_spend_30d": float("nan")}, "total_spend_30d"),
        ({"total_spend_30d": float("inf")}, "total_spend_30d"),
        ({"lifetime_value": 1e39}, "lifetime_value"),
        ({"total_spend_30d": "many"}, "total_spend_30d"),
        ({"total_spend_30d": None}, "total_spend_30d"),
        ({"total_spend_30d": True}, "total_spend_30d"),
        ({"total_orders_30d": 1.5}, "total_orders_30d"),
        ({"total_orders_30d": 2**63}, "total_orders_30d"),
        ({"customer_segment": 3}, "customer_segment"),
        ({"shoe_size": 44}, "shoe_size"),
    ],
)
@pytest.mark.parametrize("merge", ["", "?merge=true"])
def test_a_wrong_feature_is_422_and_named(
    rig: Any, served: Any, change: dict[str, Any], named: str, merge: str
) -> None:
    body = json.dumps({"customer_id": 4, "features": rig.features | change})
    answer = served.client.post(f"/predict{merge}", content=body)
    assert answer.status_code == 422
    assert [error["loc"][-1] for error in strict(answer.text)["detail"]] == [named]


def test_missing_features_are_named_or_merged(rig: Any, served: Any) -> None:
    some = {k: v for k, v in rig.features.items() if k not in {"avg_order_value", "lifetime_value"}}
    body = {"customer_id": 4, "features": some}
    answer = served.client.post("/predict", json=body)
    assert answer.status_code == 422
    names = {error["loc"][-1] for error in answer.json()["detail"]}
    assert names == {"avg_order_value", "lifetime_value"}
    merged = served.client.post("/predict?merge=true", json=body)
    assert (merged.status_code, merged.json()["features_from"]) == (200, "merged")
    assert served.client.post("/predict?merge=perhaps", json=body).status_code == 422
    complete = {"customer_id": 99_999_999, "features": rig.features}
    assert (
        served.client.post("/predict?merge=1", json=complete).json()["features_from"] == "request"
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422), (b"{", 422), (b"null", 422), (b"[]", 422), (b"\xff\xfe", 422), (DEEP, 422),
        (b'{"customer_id": "4"}', 422), (b'{"customer_id": 4.5}', 422), (b"{}", 422),
        (b'{"customer_id": 4, "x": 1}', 422), (b'{"customer_id": 1' + b"0" * 5000 + b"}", 422),
        (b'{"customer_id": 4, "features": ' + DEEP + b"}", 422),
        (b'{"customer_id": 4, "features": {"customer_segment": "\\ud800"}}', 422),
        (b" " * 1_000_001, 413), (b'{"customer_id": 9223372036854775807}', 404),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_4xx(served: Any, body: bytes, status: int) -> None:
    answer = served.client.post("/predict", content=body)
    assert answer.status_code == status
    assert strict(answer.text)["detail"]


def test_a_body_without_end_is_cut_off_at_the_limit(served: Any) -> None:
    def endless() -> Any:
        while True:
            yield b" " * 65_536

    answer = served.client.post("/predict/batch", content=endless())
    assert answer.status_code == 413


def test_batches_answer_in_order_and_have_a_limit(rig: Any, served: Any) -> None:
    row = {"customer_id": 99_999_999, "features": rig.features}
    batch = [{"customer_id": 8}, row, {"customer_id": 4}]
    answer = served.client.post("/predict/batch", json=batch)
    assert [a["customer_id"] for a in answer.json()] == [8, 99_999_999, 4]
    assert [a["features_from"] for a in answer.json()] == ["online", "request", "online"]
    many = served.client.post("/predict/batch", json=[{"customer_id": 4}] * 3_000)
    assert (many.status_code, len(many.json())) == (200, 3_000)
    assert (
        served.client.post("/predict/batch", json=[{"customer_id": 4}] * 10_001).status_code == 422
    )
    wrong = served.client.post("/predict/batch", json=[{"customer_id": 4}, {"customer_id": "x"}])
    assert wrong.json()["detail"][0]["loc"] == ["body", 1, "customer_id"]


def test_kserve_takes_keys_and_features(rig: Any, served: Any) -> None:
    for name in ("customer_churn_model", "churn-predictor"):
        assert served.client.get(f"/v1/models/{name}").json() == {"name": name, "ready": True}
        instances = [{"customer_id": 4}, rig.features, rig.features | {"customer_id": 7}]
        answer = served.client.post(f"/v1/models/{name}:predict", json={"instances": instances})
        predictions = answer.json()["predictions"]
        assert [p["customer_id"] for p in predictions] == [4, None, 7]
        assert all(0 <= p["score"] <= 1 for p in predictions)
    wrong = served.client.post(
        f"/v1/models/{name}:predict", json={"instances": [{"lifetime_orders": 1}]}
    )
    assert wrong.status_code == 422


def test_an_unknown_model_is_404_and_says_what_there_is(served: Any) -> None:
    for path in ("/models/x/predict", "/models/x/predict/batch", "/v1/models/x:predict"):
        answer = served.client.post(path, json={})
        assert answer.status_code == 404
        assert "customer_churn_model" in answer.json()["detail"]


def test_feedback_is_idempotent_and_another_actual_is_409(rig: Any, served: Any) -> None:
    request_id = rig.predict(served.client).json()["request_id"]

    def send(*pairs: tuple[str, Any]) -> Any:
        rows = [{"request_id": key, "actual": actual} for key, actual in pairs]
        return served.client.post("/feedback", json=rows if len(rows) > 1 else rows[0])

    assert send((request_id, 1)).json() == {"recorded": 1, "logged": True}
    assert send((request_id, 1.0)).status_code == 200
    refused = send(("new", 0), (request_id, 0))
    assert refused.status_code == 409
    assert request_id in refused.json()["detail"]
    assert send(("twice", 0), ("twice", 1)).status_code == 409
    for wrong in (2, 0.5, "1", True, None):
        assert send((request_id, wrong)).status_code == 422
    rows = [row for row in rig.rows("feedback") if row["request_id"] in {request_id, "new"}]
    assert [(row["request_id"], row["actual"]) for row in rows] == [(request_id, 1.0)]


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
    assert {n: p["type"] for n, p in shown.items()} == {
        name: types[kind] for name, kind in rig.spec.features.items()
    }
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].rpartition("/")[2] in schemas
    assert served.client.get("/docs").status_code == 200


def test_metrics_and_the_page_tell_what_serves(rig: Any, served: Any) -> None:
    rig.predict(served.client)
    text, named = served.client.get("/metrics").text, f'model="{rig.spec.name}",role="production"'
    for line in (
        f'gyre_model_info{{{named},version="{served.first}"}} 1.0',
        'gyre_requests_total{model="customer_churn_model",route="/predict",status="200"}',
        "gyre_feature_watermark_age_seconds{", 'gyre_source_silence_seconds{dataset="orders"}',
        "gyre_request_seconds_bucket{",
        'gyre_predictions_total{features_from="online"', "gyre_prediction_seconds_bucket{",
    ):  # fmt: skip
        assert line in text
    page = served.client.get("/").text
    assert "by test: because" in page
    assert "ready" in page
    assert "<script" not in page


def test_what_is_applied_and_not_built_is_on_the_page_and_in_the_status(
    rig: Any, served: Any
) -> None:
    def shown() -> Any:
        return served.client.get("/health/ready").json()

    link, said = view_path(rig.settings, "customer_features"), "applied, not built (no rows yet)"
    built, name = link.readlink(), "features of customer_churn_model"
    rig.wait_until("looked at", lambda: shown()["resources"][name]["detail"] == "are built")
    link.unlink()
    try:
        rig.wait_until("noticed", lambda: said in shown()["resources"][name]["detail"], 30)
        assert said in served.client.get("/").text
        found = shown()
    finally:
        link.symlink_to(built)
    assert found["ready"]  # answers are not worse than before
    assert not found["resources"][name]["ok"]
    rest = {"processes": [], "pss_mib": 0, "models": {}, "features_behind_seconds": {}, "runs": {}}
    assert any(said in line for line in lines({"serving": found, **rest}))


def test_data_docs_are_linked_and_nothing_beside_them_is_served(rig: Any, served: Any) -> None:
    folder = rig.settings.data_docs
    (page,) = (folder / "orders" / "validations").rglob("*.html")  # of the rig's own ingest
    (folder.parent / "secret.json").write_text("{}")
    address = f"/data-docs/{page.relative_to(folder)}"
    assert f'href="{address}"' in served.client.get("/").text
    assert "Successful Expectations" in served.client.get(address).text
    for path in ("../secret.json", "%2e%2e/secret.json", "..%2fsecret.json", "nothing/"):
        assert served.client.get(f"/data-docs/{path}").status_code == 404


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
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
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=bodies,
    path=st.sampled_from(["/predict", "/predict?merge=true", "/predict/batch", "/feedback"]),
)
def test_whatever_is_sent_the_answer_is_strict_json_and_no_5xx(
    served: Any, body: Any, path: str
) -> None:
    answer = served.client.post(path, content=json.dumps(body))
    assert answer.status_code < 500
    strict(answer.text)

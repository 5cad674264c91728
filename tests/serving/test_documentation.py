"""/docs: what it says of the models, and that its examples are accepted as they stand."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import at_most
from tests.serving.conftest import contract

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = {"get", "post"}


@pytest.fixture(scope="module")
def document(rig: Any, served: Any) -> Iterator[dict[str, Any]]:
    """The document, while events are taken too."""
    with rig.consuming():
        yield served.client.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_it_says_what_the_model_is(rig: Any, document: dict[str, Any]) -> None:
    assert document["info"]["title"] == rig.spec.name
    text = document["info"]["description"]
    assert f"**{rig.spec.name}** predicts `{rig.spec.label}`" in text
    assert "Key: `customer_id` (int64)" in text
    for name, kind in rig.spec.features.items():
        assert f"`{name}` ({kind})" in text


def test_the_example_of_every_operation_is_accepted_as_it_stands(
    served: Any, document: dict[str, Any]
) -> None:
    paths = set()
    for method, path, operation in operations(document):
        if method == "post":
            content = operation["requestBody"]["content"]["application/json"]
            example = content["examples"]["example"]["value"]
            named = value = "{}"
            for parameter in operation["parameters"]:
                value = parameter["schema"]["enum"][0]
                named = f"{{{parameter['name']}}}"
            answer = served.client.post(path.replace(named, value), json=example)
            assert str(answer.status_code) in operation["responses"], answer.text
            assert answer.is_success, answer.text
            paths.add(path)
        elif "{" not in path:
            assert served.client.get(path).status_code == 200
    assert paths == {
        "/predict", "/predict/batch", "/explain", "/invocations", "/feedback", "/events/{dataset}",
        "/models/{name}/predict", "/models/{name}/predict/batch", "/models/{name}/explain",
        "/models/{name}/invocations", "/v1/models/{name}:predict", "/v2/models/{name}/infer",
    }  # fmt: skip


def test_every_feature_has_its_type(rig: Any, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    types = {"int64": "integer", "double": "number", "string": "string"}
    features = schemas["Features"]["properties"]
    for name, kind in rig.spec.features.items():
        parts = features[name].get("anyOf", [features[name]])
        null = {"null"} if name in contract().nullable else set()
        assert {part["type"] for part in parts} == {types[kind], *null}
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    row = body["application/json"]["schema"]
    key = row["properties"]["customer_id"]
    assert (key["minimum"], key["maximum"]) == (-(2**63), 2**63 - 1)


def test_routes_are_grouped_by_protocol_with_a_sentence_each(
    document: dict[str, Any],
) -> None:
    described = [operation for _, _, operation in operations(document)]
    tags = {tag for operation in described for tag in operation["tags"]}
    protocols = {"Predictions", "KServe V1", "Open Inference (V2)", "MLflow"}
    assert tags == protocols | {"Events", "Feedback", "Health", "Server"}
    assert all(operation["description"].endswith(".") for operation in described)
    ids = [operation["operationId"] for operation in described]
    assert len({*ids}) == len(ids)


@pytest.mark.timed
def test_reading_it_and_large_feedback_hold_up_no_prediction(
    rig: Any, served: Any
) -> None:
    outcomes = [{"request_id": f"held-{n}", "actual": 1} for n in range(10_000)]
    seconds = []
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(
            lambda: [
                (
                    served.client.post("/feedback", json=outcomes),
                    served.client.get("/openapi.json"),
                )
                for _ in range(10)
            ]
        )
        while not work.done():
            start = time.perf_counter()
            assert rig.predict(served.client).status_code == 200
            seconds.append(time.perf_counter() - start)
    assert all(answer.is_success for pair in work.result() for answer in pair)
    print(f"\nslowest of {len(seconds)}: {max(seconds):.3f} s")  # noqa: T201
    assert sorted(seconds)[len(seconds) * 99 // 100] < at_most(0.1)

"""Which model answers where a route names none."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from core.spec import load_spec
from serving.app import add_routes
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from tests.conftest import new_settings

CHURN = load_spec("customer_churn_model")
OTHER = CHURN.model_copy(update={"name": "other_model"})


def opened(home: Any, default: str | None, specs: Any) -> httpx.AsyncClient:
    """A client of an application that asks no registry: no model is loaded."""
    settings = new_settings(home, default_model=default)
    repository = ModelRepository(settings, AppendLog(home, "predictions"))
    repository.update(specs)
    app = add_routes(FastAPI(), settings, repository)
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://here")


def asked(
    home: Any, default: str | None, specs: Any, *paths: str
) -> list[tuple[int, str]]:
    async def ask() -> list[tuple[int, str]]:
        async with opened(home, default, specs) as client:
            found = [await client.post(path, json={"customer_id": 1}) for path in paths]
        return [(answer.status_code, answer.text) for answer in found]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("default", "specs"), [(None, (CHURN,)), ("other_model", (CHURN, OTHER))]
)
def test_the_only_model_or_the_one_that_is_set_answers_without_a_name(
    tmp_path, default, specs
):
    ((status, text),) = asked(tmp_path, default, specs, "/predict")
    name = default or "customer_churn_model"
    assert status == 503
    assert name in text


@pytest.mark.parametrize("default", [None, "removed_model"])
def test_with_several_and_none_set_each_answers_by_its_name(tmp_path, default):
    paths = (
        "/predict",
        "/predict/batch",
        "/invocations",
        "/models/other_model/predict",
    )
    *unnamed, named = asked(tmp_path, default, (CHURN, OTHER), *paths)
    for status, text in unnamed:
        assert status == 404
        assert (
            "/models/customer_churn_model/predict, /models/other_model/predict" in text
        )
        assert "GYRE_DEFAULT_MODEL" in text
    assert named[0] == 503


def test_without_any_model_each_way_is_404(tmp_path):
    for status, text in asked(
        tmp_path, None, (), "/predict", "/models/other_model/predict"
    ):
        assert status == 404
        assert "none" in text


def test_the_document_has_each_route_once_by_the_default_model(tmp_path):
    by_shop = OTHER.model_copy(update={"entity_key": {"shop_id": "int64"}})

    async def read() -> Any:
        async with opened(tmp_path, "other_model", (CHURN, by_shop)) as client:
            return (await client.get("/openapi.json")).json()

    document = asyncio.run(read())
    assert document["info"]["title"] == "customer_churn_model, other_model"
    scoring = document["paths"]["/models/{name}/predict"]["post"]
    (parameter,) = scoring["parameters"]
    assert parameter["schema"]["enum"] == ["other_model", "customer_churn_model"]
    content = scoring["requestBody"]["content"]["application/json"]
    assert "shop_id" in content["schema"]["properties"]
    assert "shop_id" in content["examples"]["example"]["value"]
    assert "/models/other_model/predict" not in document["paths"]

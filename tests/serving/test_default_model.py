"""Which model answers where a route names none."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from core.spec import load_spec
from serving.app import add_routes
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from tests.conftest import new_settings

CHURN = load_spec("customer_churn_model")
OTHER = CHURN.model_copy(
    update={"name": "other_model", "entity_key": {"shop_id": "int64"}}
)
BOTH = "/models/customer_churn_model/predict, /models/other_model/predict"


def ask(home, default, specs, method, path):
    """Ask an application that has no version yet."""
    settings = new_settings(home, default_model=default)
    repository = ModelRepository(settings, AppendLog(home, "predictions"))
    repository.update(specs)
    app = add_routes(FastAPI(), settings, repository)

    async def send():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://here"
        ) as client:
            return await client.request(method, path, json={"customer_id": 1})

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("default", "specs", "path", "status", "reason"),
    [
        (None, (CHURN,), "/predict", 503, "customer_churn_model"),
        ("customer_churn_model", (CHURN, OTHER), "/predict", 503, "customer_churn_model"),
        (None, (CHURN, OTHER), "/models/customer_churn_model/predict", 503, "customer_churn_model"),
        (None, (CHURN, OTHER), "/predict", 404, BOTH),
        (None, (CHURN, OTHER), "/predict/batch", 404, "GYRE_DEFAULT_MODEL"),
        ("removed_model", (CHURN, OTHER), "/invocations", 404, BOTH),
        (None, (), "/predict", 404, "none"),
    ],
)  # fmt: skip
def test_the_only_model_or_the_default_answers_where_no_name_is_given(
    tmp_path, default, specs, path, status, reason
):
    answer = ask(tmp_path, default, specs, "POST", path)
    assert answer.status_code == status
    assert reason in answer.text

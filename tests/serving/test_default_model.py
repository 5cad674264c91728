"""Which model answers where a route names none."""

import asyncio

import pytest
from fastapi import FastAPI

from core.spec import load_spec
from serving.app import add_routes
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from tests.conftest import new_settings
from tests.serving.conftest import client_of

CHURN = load_spec("customer_churn_model")
OTHER = CHURN.model_copy(
    update={"name": "other_model", "entity_key": {"shop_id": "int64"}}
)
BOTH = "/models/customer_churn_model/predict, /models/other_model/predict"


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
    """Of an application that has no version yet."""
    settings = new_settings(tmp_path, default_model=default)
    repository = ModelRepository(settings, AppendLog(tmp_path, "predictions"))
    repository.update(specs)
    app = add_routes(FastAPI(), settings, repository)

    async def ask():
        async with client_of(app) as client:
            return await client.post(path, json={"customer_id": 1})

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert reason in answer.text

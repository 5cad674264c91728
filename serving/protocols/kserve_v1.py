"""KServe V1: `instances` are `{"customer_id": 1}` or every feature by name.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, create_model
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import KSERVE, json_response
from serving.errors import NotFoundError
from serving.openapi import Operation
from serving.protocols import Parsed, PredictRoute, Protocol, rows_from, scored, version_of
from serving.repository import Deployment, ModelRepository
from serving.schemas import FORBID, Schemas, rows_of
from serving.scorer import Answer

TAG = "KServe V1"


class Instances(BaseModel):
    model_config = FORBID
    instances: rows_of(Any)  # type: ignore[valid-type]


def read(model: Deployment, body: bytes, _request: Request) -> Parsed:
    rows = rows_from(model, Instances.model_validate_json(body).instances)

    def write(answers: Sequence[Answer]) -> Response:
        return json_response({"predictions": scored(model, rows, answers)})

    return rows, write


def operation(path: str, schemas: Schemas) -> Operation:
    predictions: Any = list[schemas.scored]  # type: ignore[name-defined]
    title = schemas.title
    return Operation(
        path,
        TAG,
        "Predict",
        "Score instances: the entity's key, every feature by name, or both.",
        create_model(f"{title}Instances", __config__=FORBID, instances=schemas.instances),
        create_model(f"{title}Predictions", predictions=predictions),
        KSERVE,
    )


def add_info(router: APIRouter, repository: ModelRepository) -> None:
    shared: Any = {"tags": [TAG], "responses": KSERVE.responses}

    @router.get("/v1/models", summary="Models", **shared)
    async def list_models() -> dict[str, list[str]]:
        """Name every model, also by the names it is also served as."""
        return {"models": [name for model in repository for name in model.names]}

    @router.get("/v1/models/{name}", summary="Model ready", **shared)
    async def model_ready(name: str) -> dict[str, str | bool]:
        """Say that a version of the model answers; 503 until one does."""
        version_of(repository.find(name))
        return {"name": name, "ready": True}

    @router.post("/v1/models/{name}", include_in_schema=False)
    async def no_verb(name: str) -> Response:
        raise NotFoundError(f"no {name!r} to post to: there is /v1/models/NAME:predict")


PROTOCOL = Protocol(
    KSERVE,
    lambda path: path.startswith("/v1/"),
    (PredictRoute(("/v1/models/{name}:predict",), read, operation),),
    add_info,
)

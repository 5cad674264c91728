"""KServe V1: `instances` are `{"customer_id": 1}` or every feature by name.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from typing import Annotated, Any, Generic, TypeVar

from annotated_types import Len
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import KSERVE, json_response
from serving.errors import NotFoundError
from serving.openapi import Operation
from serving.protocols import (
    Parsed,
    PredictRoute,
    Protocol,
    rows_from,
    scored,
    version_of,
)
from serving.repository import Deployment, ModelRepository
from serving.schemas import FORBID, MAX_ROWS, Schemas

TAG = "KServe V1"
Row = TypeVar("Row")


class Instances(BaseModel, Generic[Row]):
    model_config = FORBID
    instances: Annotated[list[Row], Len(1, MAX_ROWS)]


class Predictions(BaseModel, Generic[Row]):
    predictions: list[Row]


def read(model: Deployment, body: bytes, _request: Request) -> Parsed:
    rows = rows_from(model, Instances[Any].model_validate_json(body).instances)
    return rows, lambda answers: json_response(
        {"predictions": scored(model, rows, answers)}
    )


def operation(path: str, schemas: Schemas) -> Operation:
    text = "Score instances: the entity's key, every feature by name, or both."
    body, answer = Instances[schemas.instance], Predictions[schemas.scored]  # type: ignore[name-defined]
    return Operation(path, TAG, "Predict", text, body, answer, KSERVE)


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


ROUTE = PredictRoute(("/v1/models/{name}:predict",), read, operation)
PROTOCOL = Protocol(KSERVE, lambda path: path.startswith("/v1/"), (ROUTE,), add_info)

"""GET routes that tell clients of KServe, Open Inference and MLflow which models there are."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from starlette.routing import BaseRoute

from core.packages import package_version
from core.settings import Settings
from serving.additions import kserve_v1, mlflow_scoring, open_inference
from serving.http.edge import ERROR_RESPONSES
from serving.protocols.endpoint import answering_version, check_version
from serving.repository import ModelRepository

MLFLOW_VERSION = package_version("mlflow")
KSERVE: Any = {"tags": [kserve_v1.TAG], "responses": ERROR_RESPONSES}
INFERENCE: Any = {"tags": [open_inference.TAG], "responses": ERROR_RESPONSES}


def routes(_settings: Settings, repository: ModelRepository) -> list[BaseRoute]:
    """Return the routes of all protocols."""
    router = APIRouter()

    @router.get("/v1/models", **KSERVE)
    async def list_models() -> dict[str, list[str]]:
        """Name every model."""
        return {"models": [*repository.models]}

    @router.get("/v1/models/{name}", **KSERVE)
    @router.get("/v2/models/{name}/ready", **INFERENCE)
    async def model_ready(name: str) -> dict[str, Any]:
        """Say that a version of the model answers; 503 until one does."""
        answering_version(repository.find(name))
        return {"name": name, "ready": True}

    @router.get("/v2/models/{name}/versions/{version}/ready", **INFERENCE)
    async def version_ready(name: str, version: str) -> dict[str, Any]:
        """Say that a version of the model answers; 404 for any but that in production."""
        check_version(repository.find(name), version)
        return {"name": name, "ready": True}

    _add_metadata(router, repository)
    return router.routes


def _add_metadata(router: APIRouter, repository: ModelRepository) -> None:
    @router.get("/v2", **INFERENCE)
    async def server() -> dict[str, Any]:
        """Name this server; it has no extensions."""
        return {"name": "gyre", "version": "1", "extensions": []}

    @router.get("/v2/models/{name}", **INFERENCE)
    async def metadata(name: str) -> dict[str, Any]:
        """Name the tensors that the model takes and gives."""
        model = repository.find(name)
        answering = answering_version(model)
        return {
            "name": name,
            "versions": [answering.version],
            "platform": f"gyre_{answering.contract.format}",
            **open_inference.tensors(model),
        }

    @router.get("/v2/models/{name}/versions/{version}", **INFERENCE)
    async def version_metadata(name: str, version: str) -> dict[str, Any]:
        """Name the tensors of a version."""
        check_version(repository.find(name), version)
        return await metadata(name)

    @router.get("/version", tags=[mlflow_scoring.TAG], response_class=PlainTextResponse)
    async def mlflow_version() -> str:
        """Name the version of MLflow, as its own scoring server does."""
        return MLFLOW_VERSION

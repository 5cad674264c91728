"""What probes read of a worker: whether it lives, and whether it can answer."""

from fastapi import APIRouter
from starlette.responses import Response

from serving.edge import json_response
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from serving.watcher import RegistryWatcher


def add_health(
    router: APIRouter, repository: ModelRepository, log: AppendLog, watcher: RegistryWatcher
) -> None:
    @router.get("/health/live", tags=["Health"], summary="Live")
    async def live() -> Response:
        """Say that the process answers."""
        return json_response({"live": True})

    @router.get("/health/ready", tags=["Health"], summary="Ready",
                responses={503: {"description": "Not ready; says why."}})  # fmt: skip
    async def ready() -> Response:
        """Say of each resource whether it answers, and whether predictions can be made."""
        models = [*repository.holders.values()]
        first = repository.first().holder if models else None
        store = first.features.down if first else "unknown"
        resources = {
            **{
                f"model {each.spec.name}": (each.current is not None, each.state) for each in models
            },
            "redis": (store is None, store or "answers"),
            "mlflow": (watcher.problem is None, watcher.problem or "answers"),
            f"{log.kind} log": (log.problem is None, log.problem or "is written"),
        }
        shown = {name: {"ok": ok, "detail": detail} for name, (ok, detail) in resources.items()}
        # MLflow or the log being down does not count: answers go on without them. Nor does another
        # model that has no version yet: `GET /v1/models/{name}` tells of each.
        is_ready = first is not None and first.current is not None and store is None
        return json_response({"ready": is_ready, "resources": shown}, 200 if is_ready else 503)

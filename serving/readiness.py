"""What probes read of a worker: whether it lives, and whether it can answer."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from serving.edge import json_response
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from serving.watcher import RegistryWatcher

UNKNOWN = "unknown"
"""What a source that does not answer is shown as: never as zero or as nothing."""


def add_health(
    router: APIRouter,
    repository: ModelRepository,
    log: AppendLog,
    watcher: RegistryWatcher,
) -> None:
    @router.get("/health/live", tags=["Health"], summary="Live")
    async def live() -> Response:
        """Say that the process answers."""
        return json_response({"live": True})

    @router.get("/health/ready", tags=["Health"], summary="Ready",
                responses={503: {"description": "Not ready; says why."}})  # fmt: skip
    async def ready() -> Response:
        """Say of each resource whether it answers, and whether predictions can be made."""
        found = readiness(repository, log, watcher)
        return json_response(found, 200 if found["ready"] else 503)


def readiness(
    repository: ModelRepository, log: AppendLog, watcher: RegistryWatcher
) -> dict[str, Any]:
    """What each resource said when it was last asked. Ready: model and online store answer.

    MLflow or the log being down is shown and does not count: answers go on without them. So does
    another model that has no version yet: `GET /v1/models/{name}` tells of each. Without a default
    model any one that has a version will do.
    """
    models = [*repository.holders.values()]
    first = repository.first().holder if models else None
    store = first.features.down if first else UNKNOWN
    resources = {
        **{f"model {each.spec.name}": (each.current is not None, each.state) for each in models},
        "redis": (store is None, store or "answers"),
        "mlflow": (watcher.problem is None, watcher.problem or "answers"),
        f"{log.kind} log": (not log.problem, log.problem or "is written"),
    }
    shown = {name: {"ok": ok, "detail": detail} for name, (ok, detail) in resources.items()}
    is_ready = first is not None and first.current is not None and store is None
    return {"ready": is_ready, "resources": shown}

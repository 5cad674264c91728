"""What probes read of a worker: whether it lives, and whether it can answer."""

from typing import Any, Protocol

from fastapi import APIRouter
from starlette.responses import Response

from serving.edge import json_response
from serving.holder import Holder
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository

UNKNOWN = "unknown"
"""What a source that does not answer is shown as: never as zero or as nothing."""


class Keeper(Protocol):
    @property
    def problem(self) -> str | None: ...


def add_health(
    router: APIRouter,
    repository: ModelRepository,
    log: AppendLog,
    keeper: Keeper,
) -> None:
    @router.get("/health/live", tags=["Health"], summary="Live")
    async def live() -> Response:
        """Say that the process answers."""
        return json_response({"live": True})

    @router.get("/health/ready", tags=["Health"], summary="Ready",
                responses={503: {"description": "Not ready; says why."}})  # fmt: skip
    async def ready() -> Response:
        """Say of each resource whether it answers, and whether predictions can be made."""
        found = readiness(repository, log, keeper)
        return json_response(found, 200 if found["ready"] else 503)


def readiness(repository: ModelRepository, log: AppendLog, keeper: Keeper) -> dict[str, Any]:
    """What each resource said when it was last asked. Ready: model and online store answer.

    MLflow, the keeper or the log being down is shown and does not count: answers go on without
    them. So does another model that has no version yet: `GET /v1/models/{name}` tells of each.
    Without a default model any one that has a version will do.
    """
    holders = [*repository.holders.values()]
    first = repository.first().holder
    redis, mlflow = first.features.down, first.announced.registry_problem
    how = first.features.fallback
    resources = {
        **{f"model {h.spec.name}": (h.current is not None, h.state) for h in holders},
        **{f"features of {h.spec.name}": _built(h) for h in holders},
        "redis": (redis is None, redis or "answers"),
        "feature reader": (how is None, f"Feast's own: {how}" if how else "direct"),
        "mlflow": (mlflow is None, mlflow or "answers"),
        "keeper": (keeper.problem is None, keeper.problem or "announces"),
        f"{log.kind} log": (not log.problem, log.problem or "is written"),
    }
    shown = {name: {"ok": ok, "detail": detail} for name, (ok, detail) in resources.items()}
    return {"ready": first.current is not None and redis is None, "resources": shown}


def _built(holder: Holder) -> tuple[bool, str]:
    """Whether what was published of the model's features was also computed."""
    found = holder.announced.not_built
    return found == [], UNKNOWN if found is None else "; ".join(found) or "are built"

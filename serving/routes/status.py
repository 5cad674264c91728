"""GET routes of the server itself: probes, `/status` for the console, `/metrics`."""

import asyncio
import os
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.responses import Response
from starlette.routing import BaseRoute

from serving.http.edge import json_response
from serving.metrics import hand_over
from serving.prediction_log.append_log import AppendLog
from serving.repository import ModelRepository
from serving.versions.loaded import LoadedVersions
from serving.watcher import RegistryWatcher

PROBES = ("/ready", "/ping")
"""Ends of the paths of readiness probes: their 503 turns no request away."""


def routes(
    repository: ModelRepository,
    log: AppendLog,
    watcher: RegistryWatcher,
    console: str,
) -> list[BaseRoute]:
    """Return the routes. `/` and `/status` need a token where tokens are set.

    Args:
        repository: Knows the models.
        log: The log of predictions.
        watcher: Knows whether MLflow answers.
        console: Address of the console.

    """
    router = APIRouter()

    @router.get("/", tags=["Server"])
    async def about() -> dict[str, str]:
        """Say what this is, and where to read on."""
        return {"name": "Gyre serving", "docs": "/docs", "console": f"{console}/"}

    @router.get("/metrics", response_class=PlainTextResponse, tags=["Server"])
    async def metrics() -> Response:
        """Return what all workers counted, in Prometheus's text format."""
        hand_over()
        text = await asyncio.to_thread(lambda: generate_latest(_counts()))
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    _add_health(router, repository, log, watcher)
    return router.routes


def _add_health(
    router: APIRouter,
    repository: ModelRepository,
    log: AppendLog,
    watcher: RegistryWatcher,
) -> None:
    @router.get("/v2/health/live", tags=["Health"])
    @router.get("/health/live", tags=["Health"])
    async def live() -> dict[str, bool]:
        """Say that the process answers."""
        return {"live": True}

    no_prediction: Any = {503: {"description": "No prediction can be made."}}

    @router.get("/ping", tags=["Health"], responses=no_prediction)
    @router.get("/v2/health/ready", tags=["Health"], responses=no_prediction)
    @router.get("/health/ready", tags=["Health"], responses=no_prediction)
    async def ready() -> Response:
        """Say whether predictions can be made, and name what is not well; /status says why."""
        resources = _resources(repository, log, watcher)
        not_well = [name for name, state in resources.items() if not state["ok"]]
        # Answers go on without MLflow, the log, and versions of other models.
        is_ready = _is_ready(repository)
        content = {"ready": is_ready, "not_well": not_well}
        return json_response(content, 200 if is_ready else 503)

    @router.get("/status", tags=["Health"])
    async def status() -> Response:
        """Say what is served, what is refused or not well, and why."""
        models = {
            name: _model(model.versions) for name, model in repository.models.items()
        }
        counts = await asyncio.to_thread(_failures)
        content = {
            "ready": _is_ready(repository),
            "started": watcher.server_start.isoformat(),
            "models": models,
            "resources": _resources(repository, log, watcher),
            "counts": counts,
        }
        return json_response(content)


def _is_ready(repository: ModelRepository) -> bool:
    """Whether the default model, or without one any, has a version that answers, and its store."""
    model = repository.first()
    if model is None:
        return False
    versions = model.versions
    return versions.problem is None and versions.features.down is None


def _resources(
    repository: ModelRepository, log: AppendLog, watcher: RegistryWatcher
) -> dict[str, dict[str, Any]]:
    """Return for each resource whether it is `ok`, and in `detail` its state or its problem."""
    resources = {}
    for name, model in repository.models.items():
        versions = model.versions
        resources[f"model {name}"] = _resource(versions.problem, versions.state)
    model_of_store = repository.first()
    store_problem = (
        model_of_store.versions.features.down if model_of_store else "unknown"
    )
    resources["redis"] = _resource(store_problem, "answers")
    resources["mlflow"] = _resource(watcher.problem, "answers")
    resources["predictions log"] = _resource(log.problem, "is written")
    return resources


def _resource(problem: str | None, good: str) -> dict[str, Any]:
    return {"ok": problem is None, "detail": problem or good}


def _model(versions: LoadedVersions) -> dict[str, Any]:
    roles = versions.roles.by_name().items()
    watermark = versions.features.watermark
    return {
        "versions": {role: model.version for role, model in roles},
        "percent": versions.roles.percent,
        "refused": versions.refused,
        "problem": versions.problem,
        "watermark": watermark.isoformat() if watermark else None,
    }


def _counts() -> CollectorRegistry:
    """Add up the metrics of all processes; a process that has ended has no gauges."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def _failures() -> dict[str, Any]:
    """Return sums over all workers.

    Returns:
        `log_failures`: rows not logged, by log; `requests_refused`: requests turned away, by status;
        `events`: for each dataset the number of events that were accepted, and for each `reason`
        that of requests that were refused.

    """
    failures = {"predictions": 0.0, "feedback": 0.0}
    refusals = {"429": 0.0, "503": 0.0}
    events: list[dict[str, Any]] = []
    for metric in _counts().collect():
        for sample in metric.samples:
            if sample.name == "gyre_log_failures_total":
                failures[sample.labels["log"]] += sample.value
            elif sample.name == "gyre_requests_total":
                http_status = sample.labels["status"]
                is_probe = sample.labels["route"].endswith(PROBES)
                if http_status in refusals and not is_probe:
                    refusals[http_status] += sample.value
            elif metric.name.startswith("gyre_events"):
                events.append(sample.labels | {"count": sample.value})
    return {
        "log_failures": failures,
        "requests_refused": refusals,
        "events": events,
    }

"""What people and Prometheus read of the keeper: metrics of all processes, and the status pages."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from serving.counted import Counted
from serving.edge import PLAIN, refusal
from serving.errors import NotFoundError
from serving.loop import Loop, look
from serving.loop_metrics import LoopMetrics
from serving.status_page import MODEL_PAGE, front_page, model_page, ready_of
from stack.settings import Settings

BY_KEEPER = PLAIN.responses


def add_status(router: APIRouter, settings: Settings, loops: Sequence[Loop]) -> None:
    @router.get("/metrics", response_class=PlainTextResponse, responses=BY_KEEPER)
    def metrics() -> Response:
        registry = _counted()
        registry.register(LoopMetrics(look(loops), datetime.now(UTC)))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/", response_class=HTMLResponse, responses=BY_KEEPER)
    def front() -> HTMLResponse:
        counted, ready = Counted(_counted()), ready_of(settings)
        return HTMLResponse(front_page(settings, ready, look(loops), counted, datetime.now(UTC)))

    # No response_class: the document would have refusals in HTML too.
    told = PLAIN.responses | {200: {"content": {"text/html": {}}}}

    @router.get(f"{MODEL_PAGE}/{{name}}", responses=told)
    def of_model(name: str) -> Response:
        loop = next((each for each in loops if each.name == name), None)
        if loop is None:
            names = ", ".join(each.name for each in loops)
            return refusal(NotFoundError(f"no model {name!r}: there is {names}"))
        (known,) = look([loop])
        return HTMLResponse(model_page(settings, known, Counted(_counted()), datetime.now(UTC)))


def _counted() -> CollectorRegistry:
    """What all processes counted; of ended ones what adds up, and not how things are there."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry

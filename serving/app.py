"""A worker's application: every route behind the middleware, and what runs beside them."""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import GyreError
from core.settings import Settings
from feature_repo.broker import Intake
from serving.edge import ErrorForm, json_response, refusal
from serving.events import events_route, feedback_route, openapi_operations
from serving.features import settle
from serving.inbox import CLOSE_SECONDS, Inbox
from serving.metrics import WATERMARK_AGE
from serving.middleware import Access, RequestMiddleware
from serving.openapi import Operation, add_document
from serving.prediction_log import MAX_SECONDS, AppendLog
from serving.protocols import (
    PredictEndpoint,
    kserve_v1,
    mlflow_scoring,
    open_inference,
    plain,
)
from serving.repository import ModelRepository
from serving.watcher import RegistryWatcher

PROTOCOLS = (
    plain.PROTOCOL,
    kserve_v1.PROTOCOL,
    open_inference.PROTOCOL,
    mlflow_scoring.PROTOCOL,
)
logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> RequestMiddleware:
    """Everything is made here, nothing is opened before the application starts."""
    folder = settings.home / "serving" / "log"
    inbox = Inbox(settings.data_url, folder) if settings.data_url else None
    max_seconds = CLOSE_SECONDS if inbox else MAX_SECONDS
    logs = [
        AppendLog(folder, kind, max_seconds) for kind in ("predictions", "feedback")
    ]
    log, feedback = logs
    intake = Intake(settings)
    repository = ModelRepository(settings, log)
    watcher = RegistryWatcher(settings, repository)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        for each in logs:
            each.open()
        await watcher.poll()
        await _look_after(repository)
        settle()
        work = [watcher.run(), _every_second(_look_after, repository)]
        work += [_every_second(asyncio.to_thread, each.flush) for each in logs]
        work += [_every_second(inbox.send)] if inbox else []
        try:
            async with _beside(work):
                yield
                await repository.ended()
        finally:
            for each in logs:
                each.close()
            if inbox:
                await inbox.send_last()
            await watcher.close()
            await intake.close()
            await repository.close()

    app = FastAPIOffline(title="Gyre", version="1", lifespan=lifespan)
    app.router.routes += [events_route(intake), feedback_route(repository, feedback)]
    front = add_routes(app, repository, settings.serving_tokens_file)
    _add_health(app.router, repository, log, watcher)
    _add_info(app.router, settings)
    return front


def add_routes(
    app: FastAPI, repository: ModelRepository, tokens: Path | None
) -> RequestMiddleware:
    """Add every protocol's routes; return `app` behind the middleware. tokens: a file of them."""
    scoring = {
        path: PredictEndpoint(repository, route)
        for protocol in PROTOCOLS
        for route in protocol.predict
        for path in route.paths
    }
    app.router.routes[:0] = [
        Route(path, endpoint) for path, endpoint in scoring.items()
    ]
    for protocol in PROTOCOLS:
        protocol.add_info(app.router, repository)
    for refused in (
        HTTPException,
        GyreError,
        ValidationError,
        ClientDisconnect,
        Exception,
    ):
        app.add_exception_handler(refused, _refused)
    add_document(app, lambda: _operations(repository), guarded=tokens is not None)
    access = Access(tokens) if tokens is not None else None
    at_once = {path: endpoint for path, endpoint in scoring.items() if "{" not in path}
    return RequestMiddleware(app, at_once, access, form_of)


def form_of(path: str) -> ErrorForm:
    return next(each.form for each in reversed(PROTOCOLS) if each.owns(path))


async def _refused(request: Request, exc: Exception) -> Response:
    return refusal(exc, form_of(request.url.path))


def _operations(repository: ModelRepository) -> Iterator[Operation]:
    """What /docs show beside FastAPI's own: each scoring path under each name of a model."""
    for route in (route for protocol in PROTOCOLS for route in protocol.predict):
        for path in route.paths:
            for model in repository:
                if "{name}" in path or model is repository.default:
                    for name in model.names:
                        yield route.operation(
                            path.replace("{name}", name), model.schemas
                        )
    yield from openapi_operations(repository)


def _add_info(router: APIRouter, settings: Settings) -> None:
    @router.get("/", tags=["Server"], summary="What this is")
    async def about() -> Response:
        """Say what this is, and where to read on."""
        console = f"{settings.link('console')}/"
        return json_response(
            {"name": "Gyre serving", "docs": "/docs", "console": console}
        )

    @router.get(
        "/metrics", response_class=PlainTextResponse, tags=["Server"], summary="Counts"
    )
    async def metrics() -> Response:
        """Return what all workers counted, in Prometheus's text format."""
        text = await asyncio.to_thread(_counts)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _counts() -> bytes:
    """Add up all processes; an ended one has no gauges."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _add_health(
    router: APIRouter,
    repository: ModelRepository,
    log: AppendLog,
    watcher: RegistryWatcher,
) -> None:
    @router.get("/health/live", tags=["Health"], summary="Live")
    async def live() -> dict[str, bool]:
        """Say that the process answers."""
        return {"live": True}

    not_ready = {503: {"description": "Not ready; says why."}}

    @router.get("/health/ready", tags=["Health"], summary="Ready", responses=not_ready)  # type: ignore[arg-type]
    async def ready() -> Response:
        """Say of each resource whether it answers, and whether predictions can be made."""
        models = [*repository.holders.values()]
        first = repository.first().holder if models else None
        store = first.features.down if first else "unknown"
        resources = {
            **{
                f"model {each.spec.name}": (each.problem is None, each.state)
                for each in models
            },
            "redis": (store is None, store or "answers"),
            "mlflow": (watcher.problem is None, watcher.problem or "answers"),
            "predictions log": (log.problem is None, log.problem or "is written"),
        }
        shown = {
            name: {"ok": ok, "detail": detail}
            for name, (ok, detail) in resources.items()
        }
        # Answers go on without MLflow, the log, and versions of other models.
        is_ready = first is not None and first.problem is None and store is None
        return json_response(
            {"ready": is_ready, "resources": shown}, 200 if is_ready else 503
        )


async def _look_after(repository: ModelRepository) -> None:
    """End if the server is gone: the next one brings workers, and needs the port."""
    parent = multiprocessing.parent_process()
    if parent and parent.pid != os.getppid():
        os.kill(os.getpid(), signal.SIGTERM)
    for name, model in repository.holders.items():
        await asyncio.gather(*(source.probe() for source in model.sources))
        watermark = model.features.watermark
        age = (
            (datetime.now(UTC) - watermark).total_seconds()
            if watermark
            else float("nan")
        )
        WATERMARK_AGE.labels(name).set(age)


@asynccontextmanager
async def _beside(work: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Do `work` beside the block, and end it after."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _every_second(work: Callable[..., Awaitable[Any]], *given: Any) -> None:
    while True:
        await asyncio.sleep(1)
        try:
            await work(*given)
        except Exception:
            logger.exception("%s%s failed", work, given)

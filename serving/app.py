"""A worker's application: every route behind the middleware, and what runs beside them."""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import GyreError
from core.settings import Settings
from feature_engine.events.broker import Intake
from serving.additions import kserve_v1, mlflow_scoring, open_inference
from serving.additions.events import document_events, events_route
from serving.additions.metadata import add_metadata
from serving.http.edge import JSON, refusal
from serving.http.middleware import Access, RequestMiddleware
from serving.http.openapi import Operation, write_document
from serving.log.inbox import Inbox
from serving.log.prediction_log import AppendLog
from serving.memory import exempt_from_collection
from serving.metrics import WATERMARK_AGE, hand_over
from serving.protocols import plain
from serving.protocols.endpoint import ScoringEndpoint
from serving.repository import ModelRepository
from serving.routes import feedback
from serving.routes.status import add_status
from serving.watcher import RegistryWatcher

SCORING = (
    plain.PREDICT,
    plain.BATCH,
    plain.EXPLAIN,
    kserve_v1.ROUTE,
    open_inference.ROUTE,
    mlflow_scoring.ROUTE,
)
ERRORS = (HTTPException, GyreError, ValidationError, ClientDisconnect, Exception)
logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> RequestMiddleware:
    """Make everything that a worker has. Nothing is opened before the application starts."""
    folder = settings.home / "serving" / "log"
    inbox = Inbox(settings.data_url, folder) if settings.data_url else None
    log = AppendLog(folder, "predictions")
    feedback_log = AppendLog(folder, "feedback")
    intake = Intake(settings)
    repository = ModelRepository(settings, log)
    watcher = RegistryWatcher(settings, repository)

    look_after = partial(_look_after, repository)

    async def flush() -> None:
        await asyncio.to_thread(log.flush)
        await asyncio.to_thread(feedback_log.flush)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        log.open()
        feedback_log.open()
        await watcher.poll()
        await look_after()
        exempt_from_collection()
        # A disk that hangs holds up no probe.
        work = [watcher.run(), _every_second(look_after), _every_second(flush)]
        if inbox:
            work.append(_every_second(inbox.send))
        tasks = [asyncio.create_task(coroutine) for coroutine in work]
        try:
            yield
            await repository.ended()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.close()
            feedback_log.close()
            if inbox:
                await inbox.send_last()
            await watcher.close()
            await intake.close()
            await repository.close()

    app = FastAPIOffline(
        title="Gyre",
        version="1",
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.router.routes += [events_route(intake), feedback.feedback_route(feedback_log)]
    add_status(app.router, repository, log, watcher, settings.link("console"))
    return add_routes(app, settings, repository, intake)


def add_routes(
    app: FastAPI,
    settings: Settings,
    repository: ModelRepository,
    intake: Intake | None = None,
) -> RequestMiddleware:
    """Add every protocol's routes and the documentation; put the middleware in front."""
    tokens = settings.serving_tokens_file
    endpoints = {
        path: ScoringEndpoint(repository, route)
        for route in SCORING
        for path in route.paths
    }

    described: object = None
    content = b""

    async def document(_request: Request) -> Response:
        nonlocal described, content
        operations = [feedback.OPERATION]
        if intake is not None:
            operations.append(await document_events(intake))
        models = [*repository]
        parts = [(model.spec, model.current, model.signature) for model in models]
        served = (parts, operations)
        if served != described:
            operations = [*_scoring_operations(repository), *operations]
            content = await asyncio.to_thread(
                write_document, app, models, operations, guarded=tokens is not None
            )
            described = served
        return Response(content, media_type=JSON)

    app.router.routes[:0] = [
        Route("/openapi.json", document),
        *(Route(path, endpoint) for path, endpoint in endpoints.items()),
    ]
    add_metadata(app.router, repository)
    for error in ERRORS:
        app.add_exception_handler(error, _refuse)
    unnamed = {path: route for path, route in endpoints.items() if "{" not in path}
    return RequestMiddleware(
        app,
        unnamed,
        Access(tokens) if tokens else None,
        behind_proxy=settings.behind_proxy,
    )


async def _refuse(request: Request, exc: Exception) -> Response:
    return refusal(exc, request.url.path)


def _scoring_operations(repository: ModelRepository) -> list[Operation]:
    """Describe the scoring routes by the default model, or without one by any."""
    if not repository.models:
        return []
    model = repository.first()
    names = sorted(repository.models, key=lambda name: name != model.spec.name)
    return [
        Operation(path, names, route.tag, route.document, route.document(model))
        for route in SCORING
        for path in route.paths
        if "{version}" not in path
    ]


async def _look_after(repository: ModelRepository) -> None:
    """Probe the online stores; end if the server is gone, as the next one needs the port."""
    hand_over()
    parent = multiprocessing.parent_process()
    if parent and parent.pid != os.getppid():
        os.kill(os.getpid(), signal.SIGTERM)
    for name, model in repository.models.items():
        await asyncio.gather(*(source.probe() for source in model.sources))
        age = float("nan")
        watermark = model.features.watermark
        if watermark is not None:
            age = (datetime.now(UTC) - watermark).total_seconds()
        WATERMARK_AGE.labels(name).set(age)


async def _every_second(work: Callable[[], Awaitable[Any]]) -> None:
    while True:
        await asyncio.sleep(1)
        try:
            await work()
        except Exception:
            logger.exception("%s failed", work)

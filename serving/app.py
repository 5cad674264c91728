"""A worker's application: predictions, readiness, counts."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from feature_repo.broker import Intake
from serving.events import EVENTS_OPERATION, events_route
from serving.features import settle
from serving.feedback import feedback_operation, feedback_route
from serving.info import add_info
from serving.metrics import WATERMARK_AGE
from serving.middleware import RequestMiddleware
from serving.periodic import every
from serving.prediction_log import AppendLog
from serving.readiness import add_health
from serving.repository import ModelRepository
from serving.routes import add_routes
from serving.watcher import RegistryWatcher
from stack.settings import Settings

SECONDS = 1.0
logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> RequestMiddleware:
    """Everything is made here, nothing is opened before the application starts."""
    folder = settings.home / "serving" / "log"
    log = AppendLog(folder, "predictions")
    feedback = AppendLog(folder, "feedback")
    intake = Intake(settings)
    repository = ModelRepository(settings, log)
    watcher = RegistryWatcher(settings, repository)
    parent = os.getppid()

    async def look_after() -> None:
        _end_without(parent)
        for name, model in repository.holders.items():
            await asyncio.gather(*(source.probe() for source in model.sources))
            WATERMARK_AGE.labels(name).set(age(model.features.watermark))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            for each in (log, feedback):
                each.open()
                opened.callback(each.close)
                opened.enter_context(every(SECONDS, each.flush))
            opened.push_async_callback(intake.close)
            opened.push_async_callback(watcher.close)
            await watcher.poll()
            await look_after()
            settle()
            for work in (watcher.run(), _again(look_after)):
                opened.push_async_callback(_cancelled, asyncio.create_task(work))
            opened.push_async_callback(repository.ended)
            yield
        for model in repository.holders.values():
            for source in model.sources:
                await source.close()

    app = FastAPIOffline(title="Gyre", version="1", lifespan=lifespan)
    app.router.routes += [events_route(intake), feedback_route(repository, feedback)]
    front = add_routes(
        app,
        repository,
        settings.serving_tokens_file,
        lambda: [EVENTS_OPERATION, feedback_operation(repository)],
    )
    add_health(app.router, repository, log, watcher)
    add_info(app.router, settings)
    return front


def age(moment: datetime | None) -> float:
    """Seconds since `moment`; NaN if it is unknown."""
    return (datetime.now(UTC) - moment).total_seconds() if moment else float("nan")


def _end_without(parent: int) -> None:
    """End if the server is gone: the next brings workers, and needs the port."""
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


async def _again(work: Callable[[], Awaitable[Any]]) -> None:
    while True:
        await asyncio.sleep(SECONDS)
        try:
            await work()
        except Exception:
            logger.exception("%s failed", work)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

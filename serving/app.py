"""A worker's application: predictions, readiness, counts."""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
from serving.prediction_log import AppendLog
from serving.readiness import add_health
from serving.repository import ModelRepository
from serving.routes import add_routes
from serving.watcher import RegistryWatcher
from stack.settings import Settings

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> RequestMiddleware:
    """Everything is made here, nothing is opened before the application starts."""
    folder = settings.home / "serving" / "log"
    log = AppendLog(folder, "predictions")
    feedback = AppendLog(folder, "feedback")
    intake = Intake(settings)
    repository = ModelRepository(settings, log)
    watcher = RegistryWatcher(settings, repository)

    async def look_after() -> None:
        """End if the server is gone: the next one brings workers, and needs the port."""
        parent = multiprocessing.parent_process()
        if parent and parent.pid != os.getppid():
            os.kill(os.getpid(), signal.SIGTERM)
        for name, model in repository.holders.items():
            await asyncio.gather(*(source.probe() for source in model.sources))
            watermark = model.features.watermark
            age = (datetime.now(UTC) - watermark).total_seconds() if watermark else float("nan")
            WATERMARK_AGE.labels(name).set(age)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        log.open()
        feedback.open()
        await watcher.poll()
        await look_after()
        settle()
        tasks = [
            asyncio.create_task(watcher.run()),
            asyncio.create_task(_every_second(look_after)),
            asyncio.create_task(_every_second(asyncio.to_thread, log.flush)),
            asyncio.create_task(_every_second(asyncio.to_thread, feedback.flush)),
        ]
        try:
            yield
        finally:
            await repository.ended()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.close()
            feedback.close()
            await watcher.close()
            await intake.close()
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


async def _every_second(work: Callable[..., Awaitable[Any]], *given: Any) -> None:
    while True:
        await asyncio.sleep(1)
        try:
            await work(*given)
        except Exception:
            logger.exception("%s%s failed", work, given)

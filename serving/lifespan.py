"""The work beside the routes of a worker, from its start to its end."""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from serving.http.draining import Draining
from serving.http.openapi import DescribedRoute
from serving.memory import exempt_from_collection, give_back, has_leftovers
from serving.metrics import WATERMARK_AGE, hand_over
from serving.prediction_log.append_log import AppendLog
from serving.prediction_log.inbox import Inbox
from serving.repository import ModelRepository
from serving.watcher import RegistryWatcher

if TYPE_CHECKING:
    from serving.prediction_log.outbox import Outbox  # it needs an optional client

logger = logging.getLogger(__name__)


@asynccontextmanager
async def keep_up(
    app: FastAPI,
    *,
    draining: Draining,
    logs: Sequence[AppendLog],
    inbox: Inbox | None,
    outbox: "Outbox | None",
    repository: ModelRepository,
    watcher: RegistryWatcher,
) -> AsyncIterator[None]:
    """Open logs and models, keep them up to date, and close all connections.

    Args:
        app: The application, whose routes may have opened connections.
        draining: Puts off the end after SIGTERM.
        logs: Logs of the worker.
        inbox: Takes closed files of the logs; None: they stay in their folder.
        outbox: Sends predictions to a topic; None: there is none.
        repository: Models of the worker.
        watcher: Brings the models.

    """
    draining.prepare()
    look_after = partial(_look_after, repository, draining)
    for log in logs:
        log.open()
    await watcher.poll()
    await look_after()
    exempt_from_collection()
    # A disk that hangs holds up no probe.
    work = [
        watcher.run(),
        _every_second(look_after),
        _every_second(partial(_flush, logs)),
    ]
    if inbox:
        work.append(_every_second(inbox.send))
    if outbox:
        work.append(_every_second(partial(asyncio.to_thread, outbox.send)))
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield
        await repository.wait_for_answers()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for log in logs:
            log.close()
        if inbox:
            await inbox.send_last()
        if outbox:
            await asyncio.to_thread(outbox.close)
        await watcher.close()
        for route in app.routes:
            if isinstance(route, DescribedRoute):
                await route.close()
        await repository.close()


async def _flush(logs: Sequence[AppendLog]) -> None:
    for log in logs:
        await asyncio.to_thread(log.flush)


async def _look_after(repository: ModelRepository, draining: Draining) -> None:
    """Probe the online stores; end if the server is gone, as the next one needs the port."""
    hand_over()
    if has_leftovers():
        await asyncio.to_thread(give_back)
    parent = multiprocessing.parent_process()
    if parent and parent.pid != os.getppid():
        draining.seconds = 0
        os.kill(os.getpid(), signal.SIGTERM)
    for name, model in repository.models.items():
        await asyncio.gather(*(source.probe() for source in model.versions.sources))
        age = float("nan")
        watermark = model.versions.features.watermark
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

"""A worker's application: predictions and readiness here, everything else by the keeper."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from serving.announcement import Announcement, ModelState, announced, silent, stamp
from serving.features import FeatureSource, settle
from serving.forward import Forward, add_forwarded
from serving.holder import Holder
from serving.metrics import WATERMARK_AGE
from serving.middleware import RequestMiddleware
from serving.periodic import every
from serving.prediction_log import AppendLog
from serving.readiness import add_health
from serving.repository import ModelRepository
from serving.routes import add_routes
from stack.settings import Settings
from stack.spec import ModelSpec

FLUSH_SECONDS, PROBE_SECONDS, FOLLOW_SECONDS, CLOSE_SECONDS = 1.0, 1.0, 0.25, 30.0
logger = logging.getLogger(__name__)


def create_app(settings: Settings, specs: Sequence[ModelSpec]) -> RequestMiddleware:
    """Everything is made here, nothing is opened before the application starts."""
    log = AppendLog(settings.home / "serving" / "log", "predictions")
    repository = ModelRepository(settings, log, Holder)
    repository.update(specs)
    told, forward = Told(settings, repository.holders), Forward(settings)
    again = (
        (FOLLOW_SECONDS, told.look),
        (PROBE_SECONDS, told.probe),
        (PROBE_SECONDS, partial(_end_without, os.getppid())),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            log.open()
            opened.callback(log.close)
            opened.enter_context(every(FLUSH_SECONDS, log.flush))
            opened.push_async_callback(forward.close)
            await told.look()
            settle()  # else the first swap collects all that was imported: 0.1 s without answers
            for seconds, work in again:
                opened.push_async_callback(_cancelled, asyncio.create_task(_again(seconds, work)))
            opened.push_async_callback(repository.ended)
            yield
        for holder in repository.holders.values():
            for source in holder.sources:
                await source.close()

    app = FastAPIOffline(title="Gyre", version="1", lifespan=lifespan)
    front = add_routes(app, repository, settings.serving_tokens_file)
    add_health(app.router, repository, log, told)
    add_forwarded(app, forward)
    return front


class Told:
    """What the keeper last announced, and the holders that follow it."""

    def __init__(self, settings: Settings, holders: dict[str, Holder]) -> None:
        self._settings, self._holders = settings, holders
        self.last: Announcement | None = None
        self._stamp: tuple[int, int] | None = None
        self._closing = set[asyncio.Task[None]]()

    @property
    def problem(self) -> str | None:
        return silent(self.last)

    async def look(self) -> None:
        """Follow what is new. A model is loaded in a thread: the others answer on."""
        now = stamp(self._settings)
        if now == self._stamp:
            return
        found = await asyncio.to_thread(announced, self._settings)
        if found is None:
            return
        self.last, changed, whole = found, False, True
        for name, holder in self._holders.items():
            state = found.models.get(name, ModelState())
            loaded = await asyncio.to_thread(holder.load, state)
            if loaded is None:
                continue
            whole &= all(loaded.values())
            # Before the swap: a source that is not open yet would answer with defaults.
            await asyncio.gather(*(source.probe() for source in holder.sources))
            changed |= holder.swap(state, loaded)
            for source in holder.release_sources():  # answers that have begun still read there
                asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._close, source)
        self._stamp = now if whole else None  # what is refused is tried again at the next look
        if changed:
            settle()

    def _close(self, source: FeatureSource) -> None:
        task = asyncio.create_task(source.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def probe(self) -> None:
        """Look after the feature sources."""
        for name, holder in self._holders.items():
            await asyncio.gather(*(source.probe() for source in holder.sources))
            WATERMARK_AGE.labels(name).set(age(holder.features.watermark))


def age(moment: datetime | None) -> float:
    """Seconds since `moment`; NaN if it is unknown."""
    return (datetime.now(UTC) - moment).total_seconds() if moment else float("nan")


async def _end_without(parent: int) -> None:
    """End if the server is gone: the next brings workers, and needs the port."""
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


async def _again(seconds: float, work: Callable[[], Awaitable[Any]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            logger.exception("%s failed", work)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

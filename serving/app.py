"""The application: resources opened in order, one set of routes per model, closed in reverse."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.staticfiles import StaticFiles

from serving.events import Events, add_events
from serving.holder import Holder
from serving.prediction_log import AppendLog, FeedbackLog
from serving.routes import add_routes
from serving.scorer import Scorer
from serving.status import DATA_DOCS, add_status
from stack.errors import SettingsError
from stack.settings import Settings
from stack.spec import ModelSpec

FLUSH_SECONDS, PROBE_SECONDS, POLL_SECONDS, SOURCE_SECONDS = 1.0, 1.0, 2.0, 10.0
logger = logging.getLogger(__name__)


def create_app(settings: Settings, specs: Sequence[ModelSpec]) -> FastAPI:
    """Everything is made here, nothing is opened before the application starts.

    Raises:
        SettingsError: GYRE_DEFAULT_MODEL is none of `specs`.

    """
    names = [spec.name for spec in specs]
    if settings.default_model not in names:
        raise SettingsError(f"GYRE_DEFAULT_MODEL: {settings.default_model!r} is not in {names}")
    folder = settings.home / "serving" / "log"
    log, feedback = AppendLog(folder, "predictions"), FeedbackLog(folder)
    holders = [Holder(settings, spec) for spec in specs]
    events = [Events(settings, name) for name in sorted({spec.dataset for spec in specs})]
    logs = (log, feedback, *(each.log for each in events))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as opened:
            for each in logs:
                each.open()
                opened.callback(each.close)
                opened.enter_context(every(FLUSH_SECONDS, each.flush))
            for receiver in events:
                opened.callback(receiver.close)
                threading.Thread(target=receiver.warm, daemon=True).start()
            for holder in holders:
                opened.callback(holder.close)
                opened.enter_context(every(PROBE_SECONDS, holder.probe, holder.wake))
                opened.enter_context(every(POLL_SECONDS, holder.poll))
                opened.enter_context(every(SOURCE_SECONDS, holder.look_at_source))
            yield

    app = FastAPIOffline(title="Gyre", version="1", lifespan=lifespan)
    scorers = [Scorer(holder, log) for holder in holders]
    default, tokens = scorers[names.index(settings.default_model)], settings.serving_tokens_file
    add_routes(app, scorers, default, feedback, tokens)
    add_events(app, events)
    add_status(app.router, settings, holders, logs)
    settings.data_docs.mkdir(parents=True, exist_ok=True)
    app.mount(DATA_DOCS, StaticFiles(directory=settings.data_docs, html=True))
    return app


@contextmanager
def every(
    seconds: float, work: Callable[[], None], wake: threading.Event | None = None
) -> Iterator[None]:
    """Call `work` in a thread of its own: now, every `seconds` and when woken, until the end."""
    wake, stopped = wake or threading.Event(), threading.Event()

    def run() -> None:
        while not stopped.is_set():
            try:
                work()
            except Exception:
                logger.exception("%s failed", work)
            wake.wait(seconds)
            wake.clear()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        wake.set()
        thread.join(10)

"""The keeper's process: it follows every model, and answers what workers forward to it."""

import logging
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from serving.announcement import announce, announced
from serving.events import Events, add_events
from serving.feedback import add_feedback
from serving.keeper import Follower
from serving.loop import Loop
from serving.periodic import every
from serving.prediction_log import FeedbackLog
from serving.status import add_status
from serving.status_page import DATA_DOCS
from stack.settings import Settings
from stack.spec import ModelSpec

logger = logging.getLogger(__name__)
FLUSH_SECONDS, POLL_SECONDS, SOURCE_SECONDS = 1.0, 2.0, 10.0


def run(
    settings: Settings,
    specs: Sequence[ModelSpec],
    listening: socket.socket,
    stop: threading.Event,
) -> None:
    """Answer on `listening` until `stop` is set."""
    config = uvicorn.Config(
        create_app(settings, specs), loop="asyncio", ws="none", access_log=False, log_config=None,
        server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    server.run([listening])


def follow(settings: Settings, followers: Sequence[Follower]) -> None:
    """One round for every model; then what is so is announced, and what is over let go."""
    for follower in followers:
        try:
            follower.poll()
        except Exception:  # one model's trouble is not the others'
            logger.exception("%s: the round failed", follower.spec.name)
    on_disk = announce(settings, {each.spec.name: each.state for each in followers})
    for follower in followers if on_disk else ():  # else its copy may still name them
        follower.let_go()


def create_app(settings: Settings, specs: Sequence[ModelSpec]) -> FastAPI:
    found = announced(settings)
    known = found.models if found else {}
    followers = [Follower(settings, spec, known.get(spec.name)) for spec in specs]
    loops = [Loop(settings, follower) for follower in followers]
    feedback = FeedbackLog(settings.home / "serving" / "log")
    events = [Events(settings, name) for name in sorted({spec.dataset for spec in specs})]
    logs = (feedback, *(each.log for each in events))

    def look_at_sources() -> None:
        for follower in followers:
            follower.look_at_source()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as opened:
            for log in logs:
                log.open()
                opened.callback(log.close)
                opened.enter_context(every(FLUSH_SECONDS, log.flush))
            for receiver in events:
                opened.callback(receiver.close)
                receiver.begin_warming()
            for follower, loop in zip(followers, loops, strict=True):
                opened.callback(follower.close)
                opened.callback(loop.close)
            opened.enter_context(every(POLL_SECONDS, partial(follow, settings, followers)))
            opened.enter_context(every(SOURCE_SECONDS, look_at_sources))
            yield

    app = FastAPI(title="Gyre", version="1", lifespan=lifespan)
    add_feedback(app, feedback, specs)
    add_events(app, events)
    add_status(app.router, settings, loops)
    settings.data_docs.mkdir(parents=True, exist_ok=True)
    app.mount(DATA_DOCS, StaticFiles(directory=settings.data_docs, html=True))
    return app

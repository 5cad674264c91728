"""`python -m monitoring.console`: the console on the loopback address, until SIGTERM.

Endpoints are plain functions, which run in threads: a slow source holds up nobody else.
"""

import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from core.access.http_guard import GuardMiddleware
from core.access.private_home import make_home
from core.errors import GyreError
from core.settings import Settings, load_settings
from monitoring.console.alerts import watch
from monitoring.console.pages import Console

END_SECONDS = 5.0
"""How long the end waits for the last figures to be written."""


def create_app(settings: Settings) -> Starlette:
    """Return the console's application, which also alerts, and records figures by minute."""
    console = Console(settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(console.warm_up)
        stopped = threading.Event()
        threading.Thread(target=watch, args=(settings, stopped), daemon=True).start()
        record = console.recorder.run
        recording = threading.Thread(target=record, args=(stopped,), daemon=True)
        recording.start()
        yield
        stopped.set()
        recording.join(END_SECONDS)

    routes = [
        Route("/", console.start),
        Route("/status/{name}", console.model),
        Route("/data/{name}", console.data),
        Route("/validation/{name}", console.validation),
        Route("/data-docs/{path:path}", console.data_docs),
        Route("/metrics", console.metrics),
        Mount("/static", StaticFiles(directory=Path(__file__).with_name("static"))),
        Route("/health/live", lambda _request: PlainTextResponse("live\n")),
    ]
    for kind in ("report", "card"):
        page = f"/{kind}/{{name}}/{{key}}"
        routes.append(Route(page, partial(console.framed, kind)))
        routes.append(Route(f"{page}/document", partial(console.document, kind)))
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(GuardMiddleware, settings=settings)],
        exception_handlers={HTTPException: console.missing},
    )


if __name__ == "__main__":
    try:
        SETTINGS = load_settings()
        make_home(SETTINGS)
    except GyreError as exc:
        sys.exit(f"{exc}")
    uvicorn.run(
        create_app(SETTINGS),
        host=SETTINGS.console_host,
        port=SETTINGS.console_port,
        log_level="warning",
    )

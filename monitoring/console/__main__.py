"""`python -m monitoring.console`: the console on the loopback address, until SIGTERM.

Endpoints are plain functions, which run in threads: a slow source holds up nobody else.
"""

import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from core.errors import GyreError
from core.settings import Settings, load_settings
from monitoring.console.alerts import watch
from monitoring.console.pages import Console


def create_app(settings: Settings) -> Starlette:
    """Return the console's application, which also alerts."""
    console = Console(settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        stopped = threading.Event()
        threading.Thread(target=watch, args=(settings, stopped), daemon=True).start()
        yield
        stopped.set()

    routes = [
        Route("/", console.start),
        Route("/status/{name}", console.model),
        Route("/data/{name}", console.data),
        Route("/validation/{name}", console.validation),
        Route("/data-docs/{path:path}", console.data_docs),
        Route("/metrics", console.metrics),
        Route("/health/live", lambda _request: PlainTextResponse("live\n")),
    ]
    for kind in ("report", "card"):
        page = f"/{kind}/{{name}}/{{key}}"
        routes.append(Route(page, partial(console.framed, kind)))
        routes.append(Route(f"{page}/document", partial(console.document, kind)))
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: console.missing},
    )


if __name__ == "__main__":
    try:
        SETTINGS = load_settings()
    except GyreError as exc:
        sys.exit(f"{exc}")
    uvicorn.run(
        create_app(SETTINGS),
        host=SETTINGS.console_host,
        port=SETTINGS.console_port,
        log_level="warning",
    )

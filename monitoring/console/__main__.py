"""`python -m monitoring.console`: the console on the loopback address, until SIGTERM.

Endpoints are plain functions, which run in threads: a slow source holds up nobody else.
"""

import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from mimetypes import guess_type
from pathlib import Path, PurePosixPath

import jinja2
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from upath import UPath

from core.errors import DataError, GyreError
from core.files import reached, read_file
from core.settings import Settings, load_settings
from core.spec import broken_specs, load_specs
from core.user_code import dataset_names
from feature_repo.dataset_summary import recorded_summary
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.checks import of_model, of_server
from monitoring.console.loop_metrics import loop_metrics
from monitoring.console.status import ModelReaders, ModelStatus
from monitoring.serving_status import read_serving
from stack.processes import usage

STRICT = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
TEMPLATE = STRICT.from_string(Path(__file__).with_name("page.html").read_text("utf-8"))


def create_app(settings: Settings) -> Starlette:
    serving = CachedReader(partial(read_serving, settings))
    models = {spec.name: ModelReaders(settings, spec, serving) for spec in load_specs()}
    names = dataset_names(*(spec.dataset for spec in load_specs()))
    summaries = [CachedReader(partial(recorded_summary, settings, name)) for name in names]
    programs = CachedReader(partial(usage, settings))
    docs = settings.data_docs
    render = partial(TEMPLATE.render, settings=settings, models=models)

    def read(names: Iterable[str]) -> tuple[datetime, list[ModelStatus]]:
        wanted = [models[name] for name in names]
        read_all([serving, *(reader for model in wanted for reader in model.all)])
        return datetime.now(UTC), [model.status() for model in wanted]

    def front(_request: Request) -> Response:
        now, statuses = read(models)
        groups = {status.spec.name: [*of_model(status, now)] for status in statuses}
        groups["serving and its resources"] = [*of_server(serving.reading)]
        # Great Expectations' own index is empty without scripts from elsewhere.
        return HTMLResponse(
            render(now=now, groups=groups, data_docs=_pages(docs), broken=broken_specs())
        )

    def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            return PlainTextResponse(f"no model {name!r}: known are {', '.join(models)}\n", 404)
        now, (status,) = read([name])
        groups = {"loop": [*of_model(status, now)]}
        return HTMLResponse(render(now=now, groups=groups, status=status))

    def metrics(_request: Request) -> Response:
        now, statuses = read(models)
        read_all([*summaries, programs])
        datasets = [reader.reading.value for reader in summaries if reader.reading.value]
        text = loop_metrics(statuses, now, datasets, programs.reading.value)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/", front),
        Route("/status/{name}", model),
        Route("/metrics", metrics),
        Route("/health/live", lambda _: PlainTextResponse("live\n")),
        Route("/data-docs/{path:path}", partial(_page, docs)),
    ]
    return Starlette(routes=routes)


def _pages(docs: UPath) -> list[PurePosixPath]:
    """Addresses of Data Docs, below their folder."""
    with suppress(DataError), reached("data docs"):
        found = docs.glob("*/validations/**/*.html")
        return sorted(PurePosixPath(path.relative_to(docs).as_posix()) for path in found)
    return []


def _page(docs: UPath, request: Request) -> Response:
    path = PurePosixPath(request.path_params["path"])
    with suppress(DataError), reached("data docs"):
        if ".." not in path.parts and not path.is_absolute():
            content = read_file(docs / path)
            return Response(content, media_type=guess_type(path.name)[0])
    return PlainTextResponse("no such page\n", 404)


if __name__ == "__main__":
    try:
        SETTINGS = load_settings()
    except GyreError as exc:
        sys.exit(f"{exc}")
    HOST, PORT = SETTINGS.console_host, SETTINGS.console_port
    uvicorn.run(create_app(SETTINGS), host=HOST, port=PORT, log_level="warning")

"""`python -m monitoring.console`: the console on the loopback address, until SIGTERM.

Endpoints are plain functions, which run in threads: a slow source holds up nobody else.
"""

import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from mimetypes import guess_type
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import uvicorn
from croniter import croniter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from upath import UPath

from core.errors import DataError, GyreError
from core.files import reached, read_file
from core.settings import Settings, load_settings
from core.spec import ModelSpec, broken_specs, load_specs
from core.user_code import dataset_names
from feature_repo.broker import consumer_problem
from feature_repo.dataset_summary import recorded_summary
from feature_repo.freshness import recorded_freshness
from mlflow_server.roles import PRODUCTION
from monitoring.console.advice import problems
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.charts import Axis, Span, axis, placed
from monitoring.console.checks import of_consumer, of_model, of_server
from monitoring.console.history import SPANS, change
from monitoring.console.loop_metrics import loop_metrics
from monitoring.console.status import ModelReaders, ModelStatus, since_the_last_run, stores_of
from monitoring.serving_status import read_serving
from stack.processes import usage

STRICT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
SHARED = "serving and its resources"


def next_runs(spec: ModelSpec, now: datetime) -> dict[str, datetime]:
    """When Airflow starts what (dags/monitor.py, dags/train.py)."""
    schedule = {"@quarterly": "0 0 1 */3 *"}.get(spec.schedule, spec.schedule)
    moments = {"monitoring": croniter("@hourly", now), "training": croniter(schedule, now)}
    return {name: moment.get_next(datetime) for name, moment in moments.items()}


STRICT.globals |= {"fromisoformat": datetime.fromisoformat, "days": SPANS, "production": PRODUCTION}
FUNCTIONS = (Axis, axis, placed, change, timedelta, next_runs, since_the_last_run)
STRICT.globals |= {each.__name__: each for each in FUNCTIONS}
TEMPLATES = {page: STRICT.get_template(f"{page}.html") for page in ("index", "model", "data")}


class Console:
    """The pages. What each needs is read at once, by readers that live as long as the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings, stores = settings, stores_of(settings)
        self._serving = CachedReader(partial(read_serving, settings))
        self._consumer = CachedReader(partial(consumer_problem, settings))
        self._programs = CachedReader(partial(usage, settings))
        self._broken = CachedReader(broken_specs, 10)
        specs = [*load_specs()]
        self._models = {
            spec.name: ModelReaders(settings, spec, self._serving, stores) for spec in specs
        }
        self._datasets: dict[str, dict[str, CachedReader[Any]]] = {
            name: {
                "summary": CachedReader(partial(recorded_summary, settings, name)),
                "fresh": CachedReader(partial(recorded_freshness, settings, name, "")),
                "docs": CachedReader(partial(_docs, settings.data_docs, name)),
            }
            for name in dataset_names(*(spec.dataset for spec in specs))
        }

    def front(self, request: Request) -> Response:
        now, statuses = self._read(self._models, self._consumer, self._broken)
        groups = {status.spec.name: [*of_model(status, now)] for status in statuses}
        groups[SHARED] = [*of_server(self._serving.reading), of_consumer(self._consumer.reading)]
        page = {"groups": groups, "statuses": statuses, "broken": self._broken.reading.value or ()}
        return self._page("index", request, now, **page)

    def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in self._models:
            return _unknown("model", name, self._models)
        model, span = self._models[name], _span(request, datetime.now(UTC))
        history = model.histories[(span.until - span.since).days]
        now, (status,) = self._read([name], model.pages, history)
        page: dict[str, Any] = {"pages": model.pages.reading, "history": history.reading}
        page |= {"status": status, "groups": {name: [*of_model(status, now)]}}
        return self._page("model", request, now, **page)

    def data(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in self._datasets:
            return _unknown("dataset", name, self._datasets)
        readers = self._datasets[name]
        read_all(readers.values())
        values = {source: reader.reading for source, reader in readers.items()}
        return self._page("data", request, datetime.now(UTC), name=name, **values)

    def metrics(self, _request: Request) -> Response:
        summaries = [readers["summary"] for readers in self._datasets.values()]
        now, statuses = self._read(self._models, self._programs, *summaries)
        datasets = [reader.reading.value for reader in summaries if reader.reading.value]
        text = loop_metrics(statuses, now, datasets, self._programs.reading.value)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def _read(
        self, names: Iterable[str], *more: CachedReader[Any]
    ) -> tuple[datetime, list[ModelStatus]]:
        wanted = [self._models[name] for name in names]
        read_all([*more, self._serving, *(each for model in wanted for each in model.all)])
        return datetime.now(UTC), [model.status() for model in wanted]

    def _page(self, page: str, request: Request, now: datetime, **values: Any) -> Response:
        shown = {"settings": self._settings, "now": now, "span": _span(request, now)}
        shown |= {"models": [*self._models], "datasets": [*self._datasets]}
        shown |= {"problems": problems(values.get("groups", {}))}
        return HTMLResponse(TEMPLATES[page].render(shown | values))


def create_app(settings: Settings) -> Starlette:
    console = Console(settings)
    routes = [
        Route("/", console.front),
        Route("/status/{name}", console.model),
        Route("/data/{name}", console.data),
        Route("/metrics", console.metrics),
        Route("/health/live", lambda _: PlainTextResponse("live\n")),
        Route("/data-docs/{path:path}", partial(_file, settings.data_docs)),
    ]
    return Starlette(routes=routes)


def _span(request: Request, now: datetime) -> Span:
    asked = request.query_params.get("days")
    return Span(now - timedelta(days=next((n for n in SPANS if str(n) == asked), 30)), now)


def _unknown(kind: str, name: str, known: Iterable[str]) -> Response:
    return PlainTextResponse(f"no {kind} {name!r}: known are {', '.join(known)}\n", 404)


def _docs(docs: UPath, dataset: str) -> PurePosixPath | None:
    """Address of the dataset's Data Docs, below their folder; their own index is empty offline."""
    with reached("data docs"):
        found = sorted(docs.glob(f"{dataset}/validations/**/*.html"), key=str)
    return PurePosixPath(found[-1].relative_to(docs).as_posix()) if found else None


def _file(docs: UPath, request: Request) -> Response:
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

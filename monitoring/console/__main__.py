"""`python -m monitoring.console`: the console on the loopback address, until SIGTERM.

Endpoints are plain functions, which run in threads: a slow source holds up nobody else.
"""

import sys
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
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
from feature_repo.broker import consumer_lags, consumer_problem
from feature_repo.dataset_record import read_record
from mlflow_server.roles import PRODUCTION
from monitoring.console.advice import problems
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.charts import Axis, Span, axis, placed
from monitoring.console.checks import Check, of_events, of_model, of_server
from monitoring.console.event_alerts import watch
from monitoring.console.history import SPANS, change
from monitoring.console.loop_metrics import loop_metrics
from monitoring.console.status import (
    ModelReaders,
    ModelStatus,
    since_the_last_run,
    stores_of,
)
from monitoring.serving_status import read_serving
from stack.processes import usage

SHARED = "serving and its resources"
DEFAULT_DAYS = 30


def next_runs(spec: ModelSpec, now: datetime) -> dict[str, datetime]:
    """When Airflow starts what (dags/monitor.py, dags/train.py)."""
    schedule = {"@quarterly": "0 0 1 */3 *"}.get(spec.schedule, spec.schedule)
    return {
        "monitoring": croniter("@hourly", now).get_next(datetime),
        "training": croniter(schedule, now).get_next(datetime),
    }


LOADER = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
STRICT = jinja2.Environment(
    loader=LOADER,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
STRICT.globals |= {
    "days": SPANS,
    "fromisoformat": datetime.fromisoformat,
    "production": PRODUCTION,
}
for function in (Axis, axis, placed, change, timedelta, next_runs, since_the_last_run):
    STRICT.globals[function.__name__] = function
TEMPLATES = {
    page: STRICT.get_template(f"{page}.html") for page in ("index", "model", "data")
}


class Console:
    """The pages. What each needs is read at once, by readers that live as long as the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._serving = CachedReader(partial(read_serving, settings))
        self._consumer = CachedReader(partial(consumer_problem, settings))
        self._lags = CachedReader(partial(consumer_lags, settings))
        self._programs = CachedReader(partial(usage, settings))
        self._broken_specs = CachedReader(broken_specs, 10)
        specs = [*load_specs()]
        stores = stores_of(settings)
        self._models: dict[str, ModelReaders] = {}
        for spec in specs:
            self._models[spec.name] = ModelReaders(
                settings, spec, self._serving, stores
            )
        self._datasets: dict[str, dict[str, CachedReader[Any]]] = {}
        for name in dataset_names(*(spec.dataset for spec in specs)):
            self._datasets[name] = {
                "record": CachedReader(partial(read_record, settings, name)),
                "docs": CachedReader(partial(_docs, settings.data_docs, name)),
            }

    def front(self, request: Request) -> Response:
        """Show what is wrong, and every check."""
        now, statuses = self._read(
            self._models,
            self._consumer,
            self._lags,
            self._broken_specs,
        )
        groups: dict[str, list[Check]] = {}
        for status in statuses:
            groups[status.spec.name] = [*of_model(status, now)]
        groups[SHARED] = [
            *of_server(self._serving.reading),
            *of_events(self._consumer.reading, self._lags.reading, now),
        ]
        return self._page(
            "index",
            request,
            now,
            groups=groups,
            statuses=statuses,
            broken=self._broken_specs.reading.value or (),
        )

    def model(self, request: Request) -> Response:
        """Show one model."""
        name = request.path_params["name"]
        if name not in self._models:
            return _unknown_name("model", name, self._models)
        model = self._models[name]
        span = _span(request, datetime.now(UTC))
        history = model.histories[(span.until - span.since).days]
        now, statuses = self._read([name], model.pages, history)
        status = statuses[0]
        checks = [*of_model(status, now)]
        return self._page(
            "model",
            request,
            now,
            pages=model.pages.reading,
            history=history.reading,
            status=status,
            groups={name: checks},
        )

    def data(self, request: Request) -> Response:
        """Show one dataset."""
        name = request.path_params["name"]
        if name not in self._datasets:
            return _unknown_name("dataset", name, self._datasets)
        readers = self._datasets[name]
        read_all(readers.values())
        readings = {source: reader.reading for source, reader in readers.items()}
        return self._page(
            "data",
            request,
            datetime.now(UTC),
            name=name,
            **readings,
        )

    def metrics(self, _request: Request) -> Response:
        """Return the figures of the loop, for Prometheus."""
        readers = [dataset["record"] for dataset in self._datasets.values()]
        now, statuses = self._read(
            self._models,
            self._programs,
            self._lags,
            *readers,
        )
        values = [reader.reading.value for reader in readers]
        records = [record for record in values if record]
        text = loop_metrics(
            statuses=statuses,
            now=now,
            records=records,
            programs=self._programs.reading.value,
            lags=self._lags.reading.value,
        )
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def _read(
        self, names: Iterable[str], *readers: CachedReader[Any]
    ) -> tuple[datetime, list[ModelStatus]]:
        """Read serving, models by name, and other sources; return when, and what is known."""
        models = [self._models[name] for name in names]
        all_readers = [self._serving, *readers]
        for model in models:
            all_readers += model.all
        read_all(all_readers)
        return datetime.now(UTC), [model.status() for model in models]

    def _page(
        self, page: str, request: Request, now: datetime, **values: Any
    ) -> Response:
        """Return a page of these values, and of those that every page has."""
        values["settings"] = self._settings
        values["now"] = now
        values["span"] = _span(request, now)
        values["models"] = [*self._models]
        values["datasets"] = [*self._datasets]
        values["problems"] = problems(values.get("groups", {}))
        text = TEMPLATES[page].render(values)
        return HTMLResponse(text)


def create_app(settings: Settings) -> Starlette:
    """Return the console's application, which also alerts of events that wait."""
    console = Console(settings)
    routes = [
        Route("/", console.front),
        Route("/status/{name}", console.model),
        Route("/data/{name}", console.data),
        Route("/metrics", console.metrics),
    ]
    routes.append(Route("/health/live", _live))
    routes.append(Route("/data-docs/{path:path}", partial(_file, settings.data_docs)))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        stopped = threading.Event()
        thread = threading.Thread(
            target=watch,
            args=(settings, stopped),
            daemon=True,
        )
        thread.start()
        yield
        stopped.set()

    return Starlette(routes=routes, lifespan=lifespan)


def _live(_request: Request) -> Response:
    """Say that the process answers."""
    return PlainTextResponse("live\n")


def _span(request: Request, now: datetime) -> Span:
    """Return the time that a page shows."""
    days = DEFAULT_DAYS
    for choice in SPANS:
        if request.query_params.get("days") == str(choice):
            days = choice
    since = now - timedelta(days=days)
    return Span(since, now)


def _unknown_name(kind: str, name: str, names: Iterable[str]) -> Response:
    expected = ", ".join(names)
    return PlainTextResponse(f"no {kind} {name!r}: known are {expected}\n", 404)


def _docs(docs: UPath, dataset: str) -> PurePosixPath | None:
    """Address of the dataset's Data Docs, below their folder; their own index is empty offline."""
    with reached("data docs"):
        page = PurePosixPath(dataset) / "index.html"
        return page if (docs / page).exists() else None


def _file(docs: UPath, request: Request) -> Response:
    """Return a page of the Data Docs, and nothing beside them."""
    path = PurePosixPath(request.path_params["path"])
    with suppress(DataError), reached("data docs"):
        if ".." not in path.parts and not path.is_absolute():
            content = read_file(docs / path)
            media_type, _ = guess_type(path.name)
            return Response(content, media_type=media_type)
    return PlainTextResponse("no such page\n", 404)


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

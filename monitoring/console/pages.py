"""The pages of the console, and its metrics."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from itertools import chain, pairwise
from mimetypes import guess_type
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import jinja2
import jinja2.ext
from markupsafe import Markup, escape
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core.errors import DataError, GyreError
from core.files import read_file
from core.packages import DISTRIBUTION, package_version
from core.settings import Settings
from core.user_code import dataset_names
from feature_engine.events.broker import MAX_LAG_SECONDS
from feature_engine.ingest.record import DAYS as DATA_DAYS
from feature_engine.ingest.record import read_record, read_rules
from mlflow_server.alerts import silence_text
from mlflow_server.api.pages import Document
from mlflow_server.api.rest import read_artifact
from mlflow_server.roles import PRODUCTION, ROLES, version_text
from monitoring.console.cached_reader import PATIENCE, CachedReader, read_all
from monitoring.console.figures import LATENCIES, REQUESTS, figures_of
from monitoring.console.history import (
    DAYS,
    RANGES,
    UNMEASURED,
    chart_data,
    panels_of,
)
from monitoring.console.loop import Loop, LoopStatus
from monitoring.console.loop_metrics import loop_metrics
from monitoring.console.panels.minutes import Recorder
from monitoring.console.panels.predictions import answer_reader, question_of
from monitoring.console.states import HEALTHS, problems, worst_health
from monitoring.console.status import ModelStatus
from monitoring.console.timeline import events_of
from stack.supervisor import usage

T = TypeVar("T")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
DOCUMENT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
"""Policy of documents made from data: scripts run in an origin of their own and reach no address."""
TABS = ("now", "checks", "versions", "predictions", "ledger")
TIME_TEXT = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d(?::\d\d)?) UTC")
LONGEST_NAME = 255
"""Bytes of the name of a file."""
LONGEST_PATH = 1000
"""Bytes of a page's path below the Data Docs; a bucket takes 1,024, a disk 4,096 of a whole path."""
NOT_FOUND = 404
BAD_GATEWAY = 502


class WithoutIndentation(jinja2.ext.Extension):
    """Leaves the indentation of templates out of the pages, which would be longer by it."""

    def preprocess(
        self, source: str, _name: str | None, _filename: str | None = None
    ) -> str:
        return re.sub(r"^ +", "", source, flags=re.MULTILINE)


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    extensions=[WithoutIndentation],
)
TEMPLATES.globals |= {
    "healths": HEALTHS,
    "production": PRODUCTION,
    "roles": ROLES,
    "ranges": RANGES,
    "requests_name": REQUESTS,
    "latency_names": LATENCIES,
    "gyre_version": package_version(DISTRIBUTION),
    "silence_text": silence_text,
    "patience": PATIENCE,
    "fromisoformat": datetime.fromisoformat,
    "fromtimestamp": partial(datetime.fromtimestamp, tz=UTC),
    "max_lag_seconds": MAX_LAG_SECONDS,
    "timedelta": timedelta,
    "unmeasured": UNMEASURED,
    "worst_health": worst_health,
}


def with_times(text: str) -> Markup:
    """Return a text whose times are elements, which a script shows in the reader's zone."""
    element = r'<time datetime="\1T\2Z" title="\g<0>">\g<0></time>'
    html = TIME_TEXT.sub(element, str(escape(text)))
    return Markup(html)  # noqa: S704  (the text is escaped before)


TEMPLATES.filters["with_times"] = with_times


class Console:
    """The pages. The sources of a page are read at once, by readers that live with the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop(settings)
        self._usages = CachedReader(partial(usage, settings))
        self.recorder = Recorder(settings, self._loop.models, self._loop.lags)
        self._records = {}
        self._age_limits: dict[str, timedelta] = {}
        for model in self._loop.models.values():
            limit = model.spec.monitoring.feature_age_limit
            for name in dataset_names(*model.spec.datasets):
                self._records[name] = CachedReader(partial(read_record, settings, name))
                self._age_limits[name] = min(limit, self._age_limits.get(name, limit))

    def warm_up(self) -> None:
        """Read every source and template once, so that the first page need not."""
        readers = [model.histories[DAYS] for model in self._loop.models.values()]
        self._loop.read(*readers, self._loop.dag_runs)
        for name in TEMPLATES.list_templates():
            TEMPLATES.get_template(name)

    def start(self, request: Request) -> Response:
        """Show the problems, and every state of the loop."""
        loop = self._loop.read(self._loop.dag_runs)
        days = _chosen_days(request)
        return self._page(
            "index.html",
            loop,
            days=days,
            problems=problems(loop.states),
            events=events_of(loop.models.values(), loop.now - timedelta(days=days)),
        )

    def model(self, request: Request) -> Response:
        """Show one model."""
        name = request.path_params["name"]
        readers = _known(self._loop.models, name, "model")
        days = _chosen_days(request)
        history = readers.histories[days]
        check_name = request.query_params.get("check")
        tab = "checks" if check_name else request.query_params.get("tab")
        field, text = question_of(name, request.query_params)
        searches = []
        if tab == "predictions":
            searches = [answer_reader(name, field, text)]
        loop = self._loop.read(readers.pages, history, *searches)
        status = loop.models[name]
        card = loop.cards[name]
        pages = readers.pages.reading.value
        run = pages.versions.get(card.version or "") if pages else None
        figures = figures_of(
            results=status.rows.value.results if status.rows.value else (),
            metric=status.spec.loss,
            evaluation=run.metrics if run else {},
        )
        series = history.reading.value or []
        panels = panels_of(series, check_name)
        if tab == "checks":
            series = [*chain.from_iterable(panels.values())]
        else:
            series = [check for check in series if check.newest.name in figures.names]
        rows = {} if tab in TABS[1:] else self.recorder.rows(f"model/{name}")
        return self._page(
            "model.html",
            loop,
            tab=tab if tab in TABS else TABS[0],
            days=days,
            status=status,
            card=card,
            pages=readers.pages.reading,
            history=history.reading,
            comparison_reader=readers.comparison,
            search_field=field,
            search_text=text,
            searches=searches,
            query=request.query_params,
            check_name=check_name,
            panels=panels,
            figures=figures,
            charts=chart_data(series, loop.now)
            | {
                "marks": _promotions(status),
                "minutes": {"model": rows},
            },
            problems=problems({name: loop.states[name]}),
            events=events_of(
                [status],
                since=loop.now - timedelta(days=days),
                reports=pages.reports if pages else (),
            ),
        )

    def data(self, request: Request) -> Response:
        """Show one dataset."""
        name = request.path_params["name"]
        reader = _known(self._records, name, "dataset")
        rules = CachedReader(partial(read_rules, self._settings, name))
        loop = self._loop.read(reader, rules)
        record = reader.reading.value
        return self._page(
            "data.html",
            loop,
            name=name,
            record=reader.reading,
            rules=rules.reading,
            age_limit=self._age_limits[name],
            charts=_days_chart(record.rows if record else {}, loop.now)
            | {
                "minutes": {
                    kind: self.recorder.rows(f"{kind}/{name}")
                    for kind in ("lag", "events")
                }
            },
        )

    def validation(self, request: Request) -> Response:
        """Show the Data Docs of a dataset in a frame."""
        name = request.path_params["name"]
        _known(self._records, name, "dataset")
        return self._page(
            "frame.html",
            self._loop.read(),
            title=f"Validation of {name}",
            back=f"/data/{name}",
            source=f"/data-docs/{name}/index.html",
            links={},
        )

    def framed(self, kind: str, request: Request) -> Response:
        """Show a document of a model in a frame, with links to the documents before and after it."""
        name = request.path_params["name"]
        key = request.path_params["key"]
        documents = self._documents(kind, name)
        document = _known(documents, key, kind)
        links = {}
        for before, after in pairwise(documents):
            if after == key:
                links["previous"] = f"/{kind}/{name}/{before}"
            if before == key:
                links["next"] = f"/{kind}/{name}/{after}"
        links["open in MLflow"] = document.address
        subject = "model card" if kind == "card" else f"window up to {key}Z"
        return self._page(
            "frame.html",
            self._loop.read(),
            title=f"{name}, version {document.version}: {subject}",
            back=f"/status/{name}",
            source=f"{request.url.path}/document",
            links=links,
        )

    def document(self, kind: str, request: Request) -> Response:
        """Return a model card or a report of Evidently as it was stored."""
        documents = self._documents(kind, request.path_params["name"])
        document = _known(documents, request.path_params["key"], kind)
        try:
            content = read_artifact(
                self._settings, document.run.artifacts, document.place
            )
        except GyreError as exc:
            raise HTTPException(BAD_GATEWAY, f"{exc}") from exc
        if kind == "report":  # a model card has a style of its own
            style = TEMPLATES.get_template("report_style.html").render()
            content = content.replace(b"</head>", style.encode(), 1)
        return _response(content, "text/html", DOCUMENT_POLICY)

    def _documents(self, kind: str, name: str) -> Mapping[str, Document]:
        """Return the model cards by version, or the reports by the end of their window."""
        reader = _known(self._loop.models, name, "model").pages
        read_all([reader])
        pages = reader.reading.value
        if pages is None:
            raise HTTPException(BAD_GATEWAY, reader.reading.why)
        return pages.cards if kind == "card" else pages.reports

    def data_docs(self, request: Request) -> Response:
        """Return a page of the Data Docs, and no file outside them."""
        path = PurePosixPath(request.path_params["path"])
        is_outside = ".." in path.parts or path.is_absolute()
        is_name = all(
            part.isprintable() and len(part.encode()) <= LONGEST_NAME
            for part in path.parts
        )
        is_name = is_name and len(str(path).encode()) <= LONGEST_PATH
        if is_outside or not is_name or not path.suffix:  # a folder is no page
            raise HTTPException(NOT_FOUND)
        try:
            content = read_file(self._settings.data_docs / path)
        except FileNotFoundError as exc:
            raise HTTPException(
                NOT_FOUND,
                "Great Expectations has not written this page: see the page of the dataset",
            ) from exc
        except DataError as exc:
            raise HTTPException(BAD_GATEWAY, f"{exc}") from exc
        media_type, _ = guess_type(path.name)
        return _response(content, media_type, DOCUMENT_POLICY)

    def metrics(self, _request: Request) -> Response:
        """Return the metrics of the loop, for Prometheus."""
        loop = self._loop.read(
            *self._records.values(), self._usages, self._loop.dag_runs
        )
        values = [reader.reading.value for reader in self._records.values()]
        incidents = self._loop.incidents.reading.value or ()
        text = loop_metrics(
            loop,
            records=[record for record in values if record],
            usages=self._usages.reading.value or {},
            incidents=() if self._settings.alert_urls else incidents,
        )
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def missing(self, _request: Request, exc: Any) -> Response:
        """Show why there is no such page, and a way back; `exc` is an HTTPException."""
        loop = self._loop.read()
        return self._page("missing.html", loop, code=exc.status_code, detail=exc.detail)

    def _page(
        self, template: str, loop: LoopStatus, code: int = 200, **values: Any
    ) -> Response:
        """Return a page with these values and the values that every page has."""
        text = TEMPLATES.get_template(template).render(
            settings=self._settings,
            code=code,
            now=loop.now,
            loop_status=loop,
            datasets=[*self._records],
            newest=self.recorder.newest,
            **values,
        )
        return _response(text, "text/html", PAGE_POLICY, code)


def _chosen_days(request: Request) -> int:
    """Return the days that a page is asked to show; others than RANGES are DAYS."""
    days = request.query_params.get("days", "")
    return int(days) if days in map(str, RANGES) else DAYS


def _promotions(status: ModelStatus) -> list[tuple[float, str]]:
    """Return the time, in seconds since 1970, and the name of each version that was promoted."""
    rows = status.rows.value.ledger if status.rows.value else ()
    return [
        (row.time.timestamp(), version_text(row.to_version))
        for row in rows
        if row.role == PRODUCTION and row.applied_at
    ]


def _days_chart(rows: Mapping[date, int], now: datetime) -> dict[str, Any]:
    """Return the rows of each day as figures of a chart: see `chart_data`."""
    days = [now.date() - timedelta(days=age) for age in reversed(range(DATA_DAYS))]
    counts = [rows.get(day, 0) for day in days]
    midnights = [datetime.combine(day, time(), UTC).timestamp() for day in days]
    return {
        "times": midnights,
        "since": midnights[0],
        "until": midnights[-1],
        "charts": {"rows": {"values": counts, "limits": [], "bad": []}},
    }


def _known(values: Mapping[str, T], key: str, kind: str) -> T:
    """Return a value by its key, or answer 404."""
    if key not in values:
        names = ", ".join(values) or "none"
        raise HTTPException(
            NOT_FOUND, f"There is no {kind} {key!r}. Names that exist: {names}"
        )
    return values[key]


def _response(
    content: str | bytes, media_type: str | None, policy: str, code: int = 200
) -> Response:
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    return Response(content, code, headers, media_type)

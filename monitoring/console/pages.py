"""The pages of the console, and its metrics."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from mimetypes import guess_type
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import jinja2
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from core.errors import DataError, GyreError
from core.files import reached, read_file
from core.packages import DISTRIBUTION, package_version
from core.settings import Settings
from core.user_code import dataset_names
from feature_engine.ingest.record import read_record
from mlflow_server.alerts import silence_text
from mlflow_server.api.pages import Document
from mlflow_server.api.rest import read_artifact
from mlflow_server.roles import PRODUCTION, ROLES
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.history import panels_of, picture_of, shown_span
from monitoring.console.loop import Loop, LoopStatus
from monitoring.console.loop_metrics import loop_metrics
from monitoring.console.states import HEALTHS, LoopState, problems, worst_health
from stack.supervisor import usage

T = TypeVar("T")
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
DOCUMENT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
"""Policy of documents made from data: scripts run in an origin of their own and reach no address."""
NOT_FOUND = 404
BAD_GATEWAY = 502
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals |= {
    "healths": HEALTHS,
    "production": PRODUCTION,
    "roles": ROLES,
    "gyre_version": package_version(DISTRIBUTION),
    "silence_text": silence_text,
    "fromisoformat": datetime.fromisoformat,
    "timedelta": timedelta,
    "worst_health": worst_health,
    "panels_of": panels_of,
    "picture_of": picture_of,
}


class Console:
    """The pages. The sources of a page are read at once, by readers that live with the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop(settings)
        self._usages = CachedReader(partial(usage, settings))
        self._records = {}
        self._age_limits: dict[str, timedelta] = {}
        for model in self._loop.models.values():
            limit = model.spec.monitoring.feature_age_limit
            for name in dataset_names(*model.spec.datasets):
                self._records[name] = CachedReader(partial(read_record, settings, name))
                self._age_limits[name] = min(limit, self._age_limits.get(name, limit))

    def start(self, _request: Request) -> Response:
        """Show the problems, and every state of the loop."""
        loop = self._loop.read(None, self._loop.dag_runs)
        return self._page("index.html", snapshot=loop, states=loop.states)

    def model(self, request: Request) -> Response:
        """Show one model."""
        name = request.path_params["name"]
        readers = _known(self._loop.models, name, "model")
        loop = self._loop.read([name], readers.pages, readers.history)
        return self._page(
            "model.html",
            snapshot=loop,
            status=loop.models[name],
            card=loop.cards[name],
            pages=readers.pages.reading,
            history=readers.history.reading,
            check_name=request.query_params.get("check"),
            states={name: loop.states[name]},
        )

    def data(self, request: Request) -> Response:
        """Show one dataset."""
        name = request.path_params["name"]
        reader = _known(self._records, name, "dataset")
        read_all([reader])
        return self._page(
            "data.html",
            name=name,
            record=reader.reading,
            age_limit=self._age_limits[name],
        )

    def validation(self, request: Request) -> Response:
        """Show the Data Docs of a dataset in a frame."""
        name = request.path_params["name"]
        _known(self._records, name, "dataset")
        return self._page(
            "frame.html",
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
        return _sandboxed(content, "text/html")

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
        if ".." in path.parts or path.is_absolute():
            raise HTTPException(NOT_FOUND)
        try:
            with reached("data docs"):
                content = read_file(self._settings.data_docs / path)
        except DataError as exc:
            raise HTTPException(NOT_FOUND, "no such page is written") from exc
        media_type, _ = guess_type(path.name)
        return _sandboxed(content, media_type)

    def metrics(self, _request: Request) -> Response:
        """Return the metrics of the loop, for Prometheus."""
        loop = self._loop.read(
            None, *self._records.values(), self._usages, self._loop.dag_runs
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
        return self._page("missing.html", code=exc.status_code, detail=exc.detail)

    def _page(
        self,
        template: str,
        code: int = 200,
        states: Mapping[str, Sequence[LoopState]] | None = None,
        snapshot: LoopStatus | None = None,
        **values: Any,
    ) -> Response:
        """Return a page with these values and the values that every page has."""
        now = datetime.now(UTC)
        promotions = snapshot.promotion_times() if snapshot else []
        text = TEMPLATES.get_template(template).render(
            settings=self._settings,
            code=code,
            now=now,
            snapshot=snapshot,
            span=shown_span(promotions, now),
            models=[*self._loop.models],
            datasets=[*self._records],
            states=states,
            problems=problems(states or {}),
            **values,
        )
        return HTMLResponse(text, code, {"Content-Security-Policy": PAGE_POLICY})


def _known(values: Mapping[str, T], key: str, kind: str) -> T:
    """Return a value by its key, or answer 404."""
    if key not in values:
        names = ", ".join(values) or "none"
        raise HTTPException(NOT_FOUND, f"no {kind} {key!r}: known are {names}")
    return values[key]


def _sandboxed(content: bytes, media_type: str | None) -> Response:
    headers = {
        "Content-Security-Policy": DOCUMENT_POLICY,
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, media_type=media_type, headers=headers)

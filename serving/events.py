"""`POST /events/{dataset}`: raw events, on file and their features online before the answer.

What goes on file, and when it lands, is said in feature_repo/events.py. Rules of single rows
(feature_repo/expectations) are ingest's: an event that breaks one is accepted here, counts in the
features until then, and ends in quarantine.
"""

from __future__ import annotations

import logging
import threading
from asyncio import wrap_future
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Len
from fastapi.params import Body
from fastapi.routing import APIRoute
from fastapi.utils import create_model_field
from pydantic import BaseModel, TypeAdapter
from starlette.concurrency import run_in_threadpool

from serving.edge import PLAIN, edge, json_response, read_body
from serving.errors import InvalidRequestError, NotFoundError, NotLoggedError
from serving.metrics import EVENTS
from serving.prediction_log import AppendLog
from serving.schemas import fast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from feature_repo.definition import Dataset
    from feature_repo.entities import EntityFeatures
    from stack.settings import Settings

    Row = dict[str, Any]

MAX_EVENTS, MAX_BYTES = 1_000, 1_000_000
CLOCKS = timedelta(seconds=60)
"""How far the clock of who sends events may be ahead of ours."""
logger = logging.getLogger(__name__)


class EventsAnswer(BaseModel):
    """`online`: their features are; if not, the next ingest brings them there."""

    accepted: int
    logged: bool
    online: bool


@dataclass(frozen=True)
class Form:
    """A dataset, and what a body with its events is: one, or a list of them."""

    dataset: Dataset
    one: TypeAdapter[Any]
    many: TypeAdapter[Any]
    shown: Any


class Events:
    """One dataset's events: any thread writes them down, one brings them online, many at a time."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.name, self.log = name, AppendLog(settings.events, name)
        self._settings, self._loading = settings, threading.Lock()
        self._form: Form | None = None
        self._online: EntityFeatures | None = None
        self._waiting: deque[tuple[Sequence[Row], Future[bool]]] = deque()
        self._worker = ThreadPoolExecutor(1, f"events-{name}")
        self.show: Callable[[Any], None] = lambda _: None
        """Told what a body is, once that is known."""

    def begin_warming(self) -> None:
        """Do what takes long the first time, in a thread of its own."""
        self._worker.submit(lambda: self.show(self.form().shown))
        self.bring_online([])

    def form(self) -> Form:
        with self._loading:
            if self._form is None:
                from feature_repo.datasets import load_dataset  # noqa: PLC0415
                from feature_repo.events import row_model  # noqa: PLC0415

                dataset = load_dataset(self.name)
                row: Any = row_model(dataset)
                rows = Annotated[list[row], Len(1, MAX_EVENTS)]
                many = TypeAdapter(fast(rows))
                self._form = Form(dataset, TypeAdapter(row), many, row | rows)
            return self._form

    def take(self, body: bytes) -> list[Row]:
        """Write the events of a body to file.

        Raises:
            ValidationError, InvalidRequestError: they are none; nothing is written.
            NotLoggedError: nothing may be relied on; sending the same again is safe.

        """
        form, listed = self.form(), body.lstrip()[:1] == b"["
        read = (form.many if listed else form.one).validate_json(body)
        rows = [item.model_dump() for item in (read if listed else [read])]
        received, time = datetime.now(UTC), form.dataset.event_time
        for position, row in enumerate(rows):
            if row[time] > received + CLOCKS:
                at = f"body.{position}.{time}" if listed else f"body.{time}"
                raise InvalidRequestError(f"{at}: {row[time].isoformat()} lies in the future")
        if not self.log.write([{"received": received, "row": row} for row in rows]):
            raise NotLoggedError(f"events are not on file: {self.log.problem}")
        return rows

    def bring_online(self, rows: Sequence[Row]) -> Future[bool]:
        """Whether the features of the entities of `rows` are online, when that is known."""
        done = Future[bool]()
        self._waiting.append((rows, done))
        self._worker.submit(self._bring_online)
        return done

    def _bring_online(self) -> None:
        """All that wait in one go: what came while the one before was at work waits only once."""
        found = [self._waiting.popleft() for _ in range(len(self._waiting))]
        waiting = [each for each in found if each[1].set_running_or_notify_cancel()]
        if not waiting:
            return
        sent = [row for rows, _ in waiting for row in rows]
        try:
            if self._online is None:
                self._online = self._open()
            failed = self._online.bring_online(sent, datetime.now(UTC))
        except Exception as exc:  # noqa: BLE001  (whatever it is: the events are on file)
            logger.warning("%s events are not online: %s: %s", self.name, type(exc).__name__, exc)
            failed = sent
        for rows, done in waiting:
            done.set_result(not any(row in failed for row in rows))

    def _open(self) -> EntityFeatures:
        from feature_repo.entities import EntityFeatures  # noqa: PLC0415
        from feature_repo.features import raw_table  # noqa: PLC0415
        from feature_repo.ingest import quarantine_table  # noqa: PLC0415

        dataset = self.form().dataset
        tables = (of(self._settings, dataset) for of in (raw_table, quarantine_table))
        return EntityFeatures(self._settings, dataset, *tables)

    def close(self) -> None:
        self._worker.shutdown()
        if self._online is not None:
            self._online.close()


def add_events(app: FastAPI, all_events: Sequence[Events]) -> None:
    """Add a route for each dataset, and one behind them that says which there are."""
    known = ", ".join(events.name for events in all_events)

    async def unknown(http: Request) -> Response:
        raise NotFoundError(f"no dataset {http.path_params['name']!r}: there is {known}")

    for events in all_events:
        path = f"/events/{events.name}"
        work = edge("", path, _endpoint(events))
        route = APIRoute(path, work, methods=["POST"], response_model=EventsAnswer,
                         summary="Send events", responses=PLAIN.responses)  # fmt: skip
        app.router.routes.append(route)
        events.show = partial(_document, app, route)
    app.router.add_route("/events/{name}", edge("", "/events/{name}", unknown), methods=["POST"])


def _document(app: FastAPI, route: APIRoute, body: Any) -> None:
    route.body_field = create_model_field("body", body, field_info=Body(annotation=body))
    app.openapi_schema = None  # made anew at the next look at /docs


def _endpoint(events: Events) -> Any:
    outcome = {name: EVENTS.labels(events.name, name) for name in ("online", "on_file", "refused")}

    async def work(http: Request) -> Response:
        body = await read_body(http, MAX_BYTES)
        try:
            rows = await run_in_threadpool(events.take, body)
        except Exception:
            outcome["refused"].inc()
            raise
        online = await wrap_future(events.bring_online(rows))
        outcome["online" if online else "on_file"].inc(len(rows))
        return json_response({"accepted": len(rows), "logged": True, "online": online})

    return work

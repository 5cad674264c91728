"""`POST /events/{dataset}`: checked against the dataset's schema, on the broker before the answer.

The consumer says what an event of a dataset is, so no worker imports Feast. Rules of single rows
(feature_repo/expectations) are the consumer's: an event that breaks one goes to quarantine.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, FailFast, TypeAdapter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from feature_repo.broker import Intake
from feature_repo.events import EventSchema
from serving.edge import json_response, read_body
from serving.errors import BodyTooLargeError, InvalidRequestError, NotFoundError
from serving.metrics import EVENTS
from serving.openapi import Operation

PATH = "/events/{dataset}"
MAX_EVENTS = 1_000
MAX_BYTES = 1_000_000
CLOCKS = timedelta(seconds=60)
"""How far the clock of who sends events may be ahead of ours."""


class EventsAnswer(BaseModel):
    """id: of the entry on the stream; later entries have larger ones."""

    accepted: int
    id: str


def events_route(intake: Intake) -> Route:
    async def send_events(request: Request) -> Response:
        dataset = request.path_params["dataset"]
        body = await read_body(request, MAX_BYTES)
        schemas = await intake.schemas()
        if dataset not in schemas:
            known = ", ".join(sorted(schemas))
            raise NotFoundError(f"no dataset {dataset!r}: there is {known}")
        events = checked(schemas[dataset], body, datetime.now(UTC))
        entry = await intake.put(dataset, to_json(events))
        EVENTS.labels(dataset).inc(len(events))
        return json_response({"accepted": len(events), "id": entry}, 202)

    return Route(PATH, send_events, methods=["POST"])


EVENTS_OPERATION = Operation(
    path=PATH,
    tag="Events",
    summary="Send events",
    description="One event, or a list of at most 1,000: every column of the dataset, "
    "times with an offset.",
    body=dict[str, Any] | Annotated[list[dict[str, Any]], Len(1, MAX_EVENTS)],
    answer=EventsAnswer,
    status=202,
)


def checked(schema: bytes, body: bytes, now: datetime) -> list[Any]:
    """Return the events of a body: an object, or a list of at most MAX_EVENTS.

    schema: JSON of the dataset's EventSchema. now: aware UTC.
    """
    event_time, row, rows = _types(schema)
    listed = body.lstrip()[:1] == b"["
    events = rows.validate_json(body) if listed else [row.model_validate_json(body)]
    if len(events) > MAX_EVENTS:
        raise BodyTooLargeError(f"body: at most {MAX_EVENTS} events, found {len(events)}")
    for position, event in enumerate(events):
        at = getattr(event, event_time)
        if at > now + CLOCKS:
            field = f"body.{position}.{event_time}" if listed else f"body.{event_time}"
            raise InvalidRequestError(f"{field}: {at.isoformat()} lies in the future")
    return events


@lru_cache
def _types(schema: bytes) -> tuple[str, type[BaseModel], TypeAdapter[Any]]:
    """Name of the event time, and the types of one event and of a list."""
    found = EventSchema.model_validate_json(schema)
    row: Any = found.row_model()
    return found.event_time, row, TypeAdapter(Annotated[list[row], Len(1), FailFast()])

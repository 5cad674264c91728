"""What clients tell: `POST /events/{dataset}`, and `POST /feedback` of what came true.

Events are checked against the schema that the consumer publishes, and on the broker before the
answer. Feedback is a line of the log: the join (monitoring/collect.py) judges contradictions.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, FailFast, TypeAdapter
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from feature_repo.broker import EventSchema, Intake
from serving.edge import json_response, read_body
from serving.errors import InvalidRequestError, NotFoundError
from serving.metrics import EVENTS
from serving.openapi import Operation
from serving.prediction_log import AppendLog
from serving.protocols import BATCH_LIMIT
from serving.repository import ModelRepository
from serving.schemas import Feedback, fast, feedback_schema, rows_of

EVENTS_PATH = "/events/{dataset}"
FEEDBACK_PATH = "/feedback"
MAX_EVENTS = 1_000
MAX_BYTES = 1_000_000
CLOCKS_DIFFER = timedelta(seconds=60)
"""How far the clock of who sends events may be ahead of ours."""


class EventsAnswer(BaseModel):
    accepted: int
    id: str


class FeedbackAnswer(BaseModel):
    recorded: int
    logged: bool


def events_route(intake: Intake) -> Route:
    """Return the route that puts events on the stream."""

    async def send_events(request: Request) -> Response:
        dataset = request.path_params["dataset"]
        body = await read_body(request, MAX_BYTES)
        schemas = await intake.schemas()
        if dataset not in schemas:
            names = ", ".join(sorted(schemas))
            raise NotFoundError(f"no dataset {dataset!r}: there is {names}")
        events = checked_events(schemas[dataset], body, datetime.now(UTC))
        entry_id = await intake.put(dataset, to_json(events))
        EVENTS.labels(dataset).inc(len(events))
        return json_response({"accepted": len(events), "id": entry_id}, 202)

    return Route(EVENTS_PATH, send_events, methods=["POST"])


def feedback_route(repository: ModelRepository, log: AppendLog) -> Route:
    """Return the route that writes outcomes into the log."""

    async def record(request: Request) -> Response:
        received = datetime.now(UTC).isoformat()
        body = await read_body(request, BATCH_LIMIT)
        outcome_model = feedback_schema([model.spec for model in repository])
        if _is_list(body):
            outcome_list = TypeAdapter[list[Feedback]](fast(rows_of(outcome_model)))
            outcomes = outcome_list.validate_json(body)
        else:
            outcomes = [outcome_model.model_validate_json(body)]
        rows = [outcome.model_dump() | {"received": received} for outcome in outcomes]
        logged = log.write(rows)
        return json_response({"recorded": len(rows), "logged": logged})

    return Route(FEEDBACK_PATH, record, methods=["POST"])


def openapi_operations(repository: ModelRepository) -> list[Operation]:
    """Return what /docs show of both routes."""
    event = dict[str, Any]
    event_list = Annotated[list[event], Len(1, MAX_EVENTS)]
    send_events = Operation(
        path=EVENTS_PATH,
        tag="Events",
        summary="Send events",
        description="One event, or a list of up to 1,000: every column of the dataset, times with "
        "an offset.",
        body=event | event_list,
        answer=EventsAnswer,
        status=202,
    )
    outcome_model = feedback_schema([model.spec for model in repository])
    send_feedback = Operation(
        path=FEEDBACK_PATH,
        tag="Feedback",
        summary="Tell what came true",
        description="The outcome of one prediction, or of a list of them, by request id.",
        body=outcome_model | rows_of(outcome_model),
        answer=FeedbackAnswer,
    )
    return [send_events, send_feedback]


def checked_events(schema: bytes, body: bytes, now: datetime) -> list[Any]:
    """Return the events of a body.

    Args:
        schema: The JSON of the dataset's EventSchema.
        body: One event, or a list of events.
        now: Aware UTC.

    Raises:
        ValidationError, InvalidRequestError: The body is not such a thing; a field is named.
        HTTPException: There are too many events.

    """
    event_time, event_model, event_list = _event_types(schema)
    is_list = _is_list(body)
    events: list[Any] = (
        event_list.validate_json(body)
        if is_list
        else [event_model.model_validate_json(body)]
    )
    if len(events) > MAX_EVENTS:
        raise HTTPException(
            413, f"body: at most {MAX_EVENTS} events, found {len(events)}"
        )
    for position, event in enumerate(events):
        moment = getattr(event, event_time)
        if moment > now + CLOCKS_DIFFER:
            field = f"body.{position}.{event_time}" if is_list else f"body.{event_time}"
            raise InvalidRequestError(
                f"{field}: {moment.isoformat()} lies in the future"
            )
    return events


def _is_list(body: bytes) -> bool:
    return body.lstrip()[:1] == b"["


@lru_cache
def _event_types(schema: bytes) -> tuple[str, type[BaseModel], TypeAdapter[Any]]:
    """Return the name of the event time, and what reads an event and a list of events."""
    event_schema = EventSchema.model_validate_json(schema)
    event_model: Any = event_schema.row_model()
    event_list = TypeAdapter(Annotated[list[event_model], Len(1), FailFast()])
    return event_schema.event_time, event_model, event_list

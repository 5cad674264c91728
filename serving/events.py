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

DATASET, FEEDBACK = "/events/{dataset}", "/feedback"
MAX_EVENTS = 1_000
MAX_BYTES = 1_000_000
CLOCKS = timedelta(seconds=60)  # that the clock of who sends events may be ahead of ours


class EventsAnswer(BaseModel):
    accepted: int
    id: str


class FeedbackAnswer(BaseModel):
    recorded: int
    logged: bool


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

    return Route(DATASET, send_events, methods=["POST"])


def feedback_route(repository: ModelRepository, log: AppendLog) -> Route:
    async def record(request: Request) -> Response:
        received = datetime.now(UTC).isoformat()
        body = await read_body(request, BATCH_LIMIT)
        outcome = feedback_schema([model.spec for model in repository])
        if _is_list(body):
            items = TypeAdapter[list[Feedback]](fast(rows_of(outcome))).validate_json(body)
        else:
            items = [outcome.model_validate_json(body)]
        logged = log.write([item.model_dump() | {"received": received} for item in items])
        return json_response({"recorded": len(items), "logged": logged})

    return Route(FEEDBACK, record, methods=["POST"])


def told_operations(repository: ModelRepository) -> list[Operation]:
    """Return what /docs show of both routes."""
    outcome = feedback_schema([model.spec for model in repository])
    event = dict[str, Any]
    events = event | Annotated[list[event], Len(1, MAX_EVENTS)]
    sent = "One event, or a list of up to 1,000: every column of the dataset, times with an offset."
    both = outcome | rows_of(outcome)
    told = "The outcome of one prediction, or of a list of them, by request id."
    return [
        Operation(DATASET, "Events", "Send events", sent, events, EventsAnswer, status=202),
        Operation(FEEDBACK, "Feedback", "Tell what came true", told, both, FeedbackAnswer),
    ]


def checked(schema: bytes, body: bytes, now: datetime) -> list[Any]:
    """Return the events of a body. schema: JSON of the dataset's EventSchema. now: aware UTC."""
    event_time, row, rows = _types(schema)
    events = rows.validate_json(body) if _is_list(body) else [row.model_validate_json(body)]
    if len(events) > MAX_EVENTS:
        raise HTTPException(413, f"body: at most {MAX_EVENTS} events, found {len(events)}")
    for position, event in enumerate(events):
        at = getattr(event, event_time)
        if at > now + CLOCKS:
            field = f"body.{position}.{event_time}" if _is_list(body) else f"body.{event_time}"
            raise InvalidRequestError(f"{field}: {at.isoformat()} lies in the future")
    return events


def _is_list(body: bytes) -> bool:
    return body.lstrip()[:1] == b"["


@lru_cache
def _types(schema: bytes) -> tuple[str, type[BaseModel], TypeAdapter[Any]]:
    found = EventSchema.model_validate_json(schema)
    row: Any = found.row_model()
    return found.event_time, row, TypeAdapter(Annotated[list[row], Len(1), FailFast()])

"""`POST /events/{dataset}`: new rows of a dataset, for the consumer to land.

They are checked against the schema that the consumer publishes, and are on the broker before the
answer.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any

from annotated_types import Len
from pydantic import FailFast, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core.errors import BrokerUnavailableError, DataError
from core.settings import Settings
from feature_engine.events.broker import broker
from feature_engine.events.interface import Intake
from feature_engine.events.schema import PublishedSchemas
from feature_repo.event_schema import EventSchema
from serving.errors import InvalidRequestError, NotFoundError
from serving.http.edge import json_response, read_body, run_by_size
from serving.http.openapi import DescribedRoute, Document, Operation
from serving.metrics import EVENTS, EVENTS_REFUSED
from serving.repository import ModelRepository

PATH = "/events/{dataset}"
MAX_EVENTS = 1_000
MAX_BYTES = 1_000_000
CLOCKS_DIFFER = timedelta(seconds=60)
"""How far a sender's clock may be ahead of ours."""
COLUMN_EXAMPLES: Mapping[str, Any] = {
    "bool": True,
    "float": 1.0,
    "double": 1.0,
    "string": "a",
    "timestamp[us, tz=UTC]": "2026-01-01T00:00:00Z",
}
EVENT_LIST = Annotated[list[dict[str, Any]], Len(1, MAX_EVENTS)]
BODY = TypeAdapter[Any](dict[str, Any] | EVENT_LIST)
NOBODY = -1
"""Example of an integer: nobody's key, so that it changes nobody's features."""


class EventsRoute(DescribedRoute):
    """The route that puts events on the stream."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(PATH, self.take, methods=["POST"])
        self._schemas = PublishedSchemas(settings)
        self._intake = broker(settings).intake()

    async def take(self, request: Request) -> Response:
        """Answer a request."""
        dataset = request.path_params["dataset"]
        body = await read_body(request.scope, request.receive, MAX_BYTES)
        schemas = await self._schemas.read()
        answer = await send_events(self._intake, schemas, dataset, body)
        return json_response(answer, 202)

    async def describe(self) -> Operation:
        """Describe the route, with an example of one dataset where some take events."""
        contents = {}
        with suppress(BrokerUnavailableError):
            contents = await self._schemas.read()
        schemas = [_event_schema(content) for content in contents.values()]
        columns = {
            schema.dataset: schema.columns for schema in schemas if not schema.topic
        }
        datasets = sorted(columns)
        example = {}
        if datasets:
            for name, kind in columns[datasets[0]].items():
                example[name] = COLUMN_EXAMPLES.get(kind, NOBODY)
        return Operation(
            path=PATH,
            names=datasets,
            tag="Events",
            function=send_events,
            document=Document(BODY, example),
            status=202,
        )

    async def close(self) -> None:
        await self._schemas.close()
        await self._intake.close()


async def send_events(
    intake: Intake, schemas: Mapping[str, bytes], dataset: str, body: bytes
) -> dict[str, Any]:
    """Take one event, or a list of up to 1,000: every column, times with an offset."""
    if dataset not in schemas:
        names = ", ".join(sorted(schemas)) or "none"
        raise NotFoundError(f"no dataset {dataset!r}: there is {names}")
    schema = _event_schema(schemas[dataset])
    if schema.topic:
        raise NotFoundError(f"{dataset}: its events come from the topic {schema.topic}")
    size = len(body)
    try:
        events = await run_by_size(size, checked_events, schemas[dataset], body)
    except ValidationError as exc:
        EVENTS_REFUSED.labels(dataset, exc.errors()[0]["type"]).inc()
        raise
    except InvalidRequestError:
        EVENTS_REFUSED.labels(dataset, "in_future").inc()
        raise
    records = await run_by_size(size, intake.records, schema, events)
    try:
        entry_id = await intake.put(dataset, records)
    except DataError as exc:
        raise HTTPException(413, str(exc)) from exc
    EVENTS.labels(dataset).inc(len(events))
    return {"accepted": len(events), "id": entry_id}


def checked_events(schema: bytes, body: bytes) -> list[Any]:
    """Return the events of a body.

    Args:
        schema: The JSON of the dataset's EventSchema.
        body: One event, or a list of events.

    Raises:
        ValidationError, InvalidRequestError: The body is no event; a field is named.
        HTTPException: There are too many events.

    """
    event_time, event, event_list = _event_types(schema)
    is_list = body.lstrip()[:1] == b"["
    events = event_list.validate_json(body) if is_list else [event.validate_json(body)]
    if len(events) > MAX_EVENTS:
        raise HTTPException(
            413, f"body: at most {MAX_EVENTS} events, found {len(events)}"
        )
    latest = datetime.now(UTC) + CLOCKS_DIFFER
    for position, row in enumerate(events):
        moment = row[event_time]
        if moment > latest:
            raise InvalidRequestError(
                f"body.{position}.{event_time}: {moment.isoformat()} lies in the future"
            )
    return events


@lru_cache
def _event_schema(content: bytes) -> EventSchema:
    """Read a schema once: it is the same in each request."""
    return EventSchema.model_validate_json(content)


@lru_cache
def _event_types(schema: bytes) -> tuple[str, TypeAdapter[Any], TypeAdapter[Any]]:
    """Return the name of the event time, and readers of an event and of a list of events."""
    event_schema = _event_schema(schema)
    event = event_schema.row_type()
    event_list: Any = Annotated[list[event], Len(1), FailFast()]  # type: ignore[valid-type]
    return event_schema.event_time, TypeAdapter(event), TypeAdapter(event_list)


def routes(settings: Settings, _repository: ModelRepository) -> list[DescribedRoute]:
    """Return the route of events."""
    return [EventsRoute(settings)]

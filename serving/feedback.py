"""`POST /feedback`: what came true, one line of the log each.

Nothing is remembered: the join (monitoring/feedback.py) finds what matches no prediction, and of
lines that contradict each other the first received stands.
"""

from datetime import UTC, datetime

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.edge import json_response, read_body
from serving.openapi import Operation
from serving.prediction_log import AppendLog
from serving.protocols import BATCH_LIMIT
from serving.repository import ModelRepository
from serving.schemas import Feedback, fast, feedback_schema, rows_of

PATH = "/feedback"


class FeedbackAnswer(BaseModel):
    recorded: int
    logged: bool


def feedback_route(repository: ModelRepository, log: AppendLog) -> Route:
    async def record(request: Request) -> Response:
        received = datetime.now(UTC).isoformat()
        body = await read_body(request, BATCH_LIMIT)
        outcome = _outcome(repository)
        if body.lstrip()[:1] == b"[":
            items = TypeAdapter[list[Feedback]](fast(rows_of(outcome))).validate_json(body)
        else:
            items = [outcome.model_validate_json(body)]
        lines = [item.model_dump() | {"received": received} for item in items]
        return json_response({"recorded": len(lines), "logged": log.write(lines)})

    return Route(PATH, record, methods=["POST"])


def feedback_operation(repository: ModelRepository) -> Operation:
    """Return what /docs show of the route."""
    outcome = _outcome(repository)
    return Operation(
        path=PATH,
        tag="Feedback",
        summary="Tell what came true",
        description="The outcome of one prediction, or of a list of them, by request id.",
        body=outcome | rows_of(outcome),
        answer=FeedbackAnswer,
    )


def _outcome(repository: ModelRepository) -> type[Feedback]:
    return feedback_schema([model.spec for model in repository])

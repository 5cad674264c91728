"""`POST /feedback`: what came true, one line of the log each.

Nothing is remembered: the join (monitoring/feedback.py) finds what matches no prediction, and of
lines that contradict each other the first received stands.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import edge, json_response, read_body
from serving.prediction_log import AppendLog
from serving.protocols import BATCH_LIMIT
from serving.schemas import MAX_ROWS, Feedback, fast, feedback_schema, rows_of
from stack.spec import ModelSpec


class FeedbackAnswer(BaseModel):
    recorded: int
    logged: bool


def feedback_route(
    log: AppendLog, specs: Sequence[ModelSpec], responses: dict[int | str, dict[str, Any]]
) -> APIRoute:
    """Make the route; responses: how it refuses, for /docs."""
    outcome = feedback_schema(specs)
    one, many = TypeAdapter(outcome), TypeAdapter[list[Feedback]](fast(rows_of(outcome)))
    shown = outcome.model_json_schema()
    body = {
        "anyOf": [shown, {"type": "array", "items": shown, "minItems": 1, "maxItems": MAX_ROWS}]
    }

    async def tell(request: Request) -> Response:
        received = datetime.now(UTC).isoformat()
        sent = await read_body(request, BATCH_LIMIT)
        listed = sent.lstrip()[:1] == b"["
        items = many.validate_json(sent) if listed else [one.validate_json(sent)]
        lines = [item.model_dump() | {"received": received} for item in items]
        return json_response({"recorded": len(lines), "logged": log.write(lines)})

    return APIRoute(
        "/feedback",
        edge("", "/feedback", tell),
        methods=["POST"],
        response_model=FeedbackAnswer,
        summary="Tell what came true",
        responses=responses,
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": body}}}},
    )

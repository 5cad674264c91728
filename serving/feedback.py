"""`POST /feedback`: what came true, `{"request_id", "actual"}` or a list of them."""

from collections.abc import Sequence
from datetime import UTC, datetime

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import edge, json_response, read_body
from serving.errors import FeedbackConflictError
from serving.prediction_log import FeedbackLog
from serving.protocols import BATCH_LIMIT
from serving.schemas import Feedback, fast, feedback_schema, rows_of
from stack.spec import ModelSpec


class FeedbackAnswer(BaseModel):
    recorded: int
    logged: bool


def add_feedback(app: FastAPI, log: FeedbackLog, specs: Sequence[ModelSpec]) -> None:
    """All of a body is recorded, or nothing (409)."""
    outcome = feedback_schema(specs)
    single, many = TypeAdapter(outcome), TypeAdapter[list[Feedback]](fast(rows_of(outcome)))

    async def work(request: Request) -> Response:
        received = datetime.now(UTC)
        body = await read_body(request, BATCH_LIMIT)
        listed = body.lstrip()[:1] == b"["
        items = many.validate_json(body) if listed else [single.validate_json(body)]
        outcomes: dict[str, float] = {}
        for item in items:
            if outcomes.setdefault(item.request_id, item.actual) != item.actual:
                raise FeedbackConflictError(f"request_id {item.request_id}: two actuals sent")
        logged = log.record(outcomes, received)
        return json_response({"recorded": len(outcomes), "logged": logged})

    app.router.add_route("/feedback", edge("", "/feedback", work), methods=["POST"])

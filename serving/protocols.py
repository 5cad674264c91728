"""The protocols: each translates its bodies to rows for the scorer and answers back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from serving.edge import BATCH_LIMIT, ROW_LIMIT, answer_json, json_response, read_body, wants_merge
from serving.errors import FeedbackConflictError, NoModelError
from serving.schemas import ANSWER, FEEDBACK, FEEDBACKS
from serving.scorer import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pydantic import BaseModel
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from serving.prediction_log import FeedbackLog
    from serving.schemas import Schemas
    from serving.scorer import Answer, Scorer

    Work = Callable[[HttpRequest], Awaitable[Response]]

FIELDS = {name: name for name in ANSWER} | {"model_version": "version"}
"""Names in an answer, and those in the log."""


def predict(scorer: Scorer, schemas: Schemas, *, batch: bool) -> Work:
    """`{"customer_id": 1, "features": {…}?}`, or a list of them."""
    entity_key = scorer.spec.entity_key

    def request(item: Any, *, merge: bool) -> Request:
        given = item.features
        values = None if given is None else given.model_dump(exclude_unset=True)
        return Request(getattr(item, entity_key), values, merge)

    async def work(http: HttpRequest) -> Response:
        received = datetime.now(UTC)
        merge = wants_merge(http)
        schema = schemas.body[batch, merge]

        def answer(body: bytes) -> Any:
            parsed = schema.validate_json(body)
            items = parsed if batch else [parsed]
            rows = [request(item, merge=merge) for item in items]
            answers = [_plain(entity_key, a) for a in scorer.answer(rows, received)]
            return answers if batch else answers[0]

        return await answer_json(await read_body(http, BATCH_LIMIT if batch else ROW_LIMIT), answer)

    return work


def _plain(entity_key: str, answer: Answer) -> dict[str, Any]:
    named = {entity_key: answer["entity"]}
    return named | {name: answer[field] for name, field in FIELDS.items()}


def kserve_predict(scorer: Scorer, schemas: Schemas) -> Work:
    """KServe V1: instances are `{"customer_id": 1}` or every feature by name."""
    entity_key = scorer.spec.entity_key

    def request(instance: BaseModel) -> Request:
        values = instance.model_dump(exclude_unset=True)
        return Request(values.pop(entity_key, None), values or None)

    async def work(http: HttpRequest) -> Response:
        received = datetime.now(UTC)

        def answer(body: bytes) -> Any:
            parsed: Any = schemas.instances.model_validate_json(body)
            answers = scorer.answer([request(i) for i in parsed.instances], received)
            plain = [_plain(entity_key, a) for a in answers]
            return {"predictions": [{"score": row.pop("probability"), **row} for row in plain]}

        return await answer_json(await read_body(http, BATCH_LIMIT), answer)

    return work


def kserve_ready(scorer: Scorer) -> Work:
    """KServe V1 model readiness: 503 until a version answers."""

    async def work(http: HttpRequest) -> Response:
        if scorer.holder.current is None:
            raise NoModelError(scorer.holder.state)
        name = http.url.path.rpartition("/")[2]
        return json_response({"name": name, "ready": True})

    return work


def feedback(log: FeedbackLog) -> Work:
    """`{"request_id", "actual"}` or a list. All of it is recorded, or nothing (409)."""

    async def work(http: HttpRequest) -> Response:
        received = datetime.now(UTC)
        body = await read_body(http, BATCH_LIMIT)
        listed = body.lstrip()[:1] == b"["
        items = FEEDBACKS.validate_json(body) if listed else [FEEDBACK.validate_json(body)]
        outcomes: dict[str, float] = {}
        for item in items:
            if outcomes.setdefault(item.request_id, item.actual) != item.actual:
                raise FeedbackConflictError(f"request_id {item.request_id}: two actuals sent")
        logged = log.record(outcomes, received)
        return json_response({"recorded": len(outcomes), "logged": logged})

    return work

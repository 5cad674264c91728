"""Where HTTP meets the rest: bodies in, one table of statuses, strict JSON out, all counted."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import errors
from stack.errors import FeaturesUnavailableError, GyreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from serving.metrics import Metrics

ROW_LIMIT, BATCH_LIMIT = 1_000_000, 10_000_000
"""Bytes of a body."""
INLINE_BYTES = 4_096
"""Bodies up to here are answered on the event loop; a larger one would hold up the others."""
SHOWN_ERRORS = 20
STATUSES: dict[type[Exception], int] = {
    ClientDisconnect: 400,
    errors.UnknownModelError: 404,
    errors.UnknownEntityError: 404,
    errors.FeedbackConflictError: 409,
    errors.BodyTooLargeError: 413,
    errors.IncompleteRequestError: 422,
    errors.UnscorableError: 422,
    ValidationError: 422,
    errors.ModelFailedError: 500,
    errors.NoModelError: 503,
    FeaturesUnavailableError: 503,
}
logger = logging.getLogger(__name__)


def json_response(content: Any, status: int = 200) -> Response:
    body = to_json(content, inf_nan_mode="null")
    return Response(body, status, media_type="application/json")


def edge(
    metrics: Metrics, model: str, route: str, work: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """Make an endpoint of `work`: its errors become answers, and each answer is counted."""
    seconds = metrics.seconds.labels(model, route)

    async def endpoint(request: Request) -> Response:
        start = time.perf_counter()
        try:
            response = await work(request)
        except Exception as exc:  # noqa: BLE001  (one place for all of them: see STATUSES)
            response = refusal(exc)
        metrics.requests.labels(model, route, response.status_code).inc()
        seconds.observe(time.perf_counter() - start)
        return response

    return endpoint


def refusal(exc: Exception) -> Response:
    """Answer an error: `detail` names what is wrong. What is not in the table is a defect."""
    status = next((STATUSES[kind] for kind in type(exc).__mro__ if kind in STATUSES), 500)
    if status == STATUSES[errors.ModelFailedError]:
        logger.error("answered with 500", exc_info=exc)
    detail: Any = str(exc) if isinstance(exc, GyreError) else "internal error"
    if isinstance(exc, ValidationError):
        found = exc.errors(include_url=False, include_context=False, include_input=False)
        detail = [{**error, "loc": ["body", *error["loc"]]} for error in found[:SHOWN_ERRORS]]
    response = json_response({"detail": detail}, status)
    if isinstance(exc, FeaturesUnavailableError):
        response.headers["retry-after"] = "1"
    if isinstance(exc, errors.BodyTooLargeError):
        response.headers["connection"] = "close"  # the rest of the body is not read
    return response


async def read_body(request: Request, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise errors.BodyTooLargeError(f"body: over {limit} bytes, the limit of this route")
        chunks.append(chunk)
    return b"".join(chunks)


async def answer_json(body: bytes, work: Callable[[bytes], Any]) -> Response:
    """Run `work` on the body; a large one in a thread, where it holds up nobody."""
    if len(body) <= INLINE_BYTES:
        return json_response(work(body))
    return await run_in_threadpool(lambda: json_response(work(body)))


def wants_merge(request: Request) -> bool:
    if not request.scope["query_string"]:
        return False
    value = QueryParams(request.scope["query_string"]).get("merge", "false").lower()
    if value not in {"true", "1", "false", "0"}:
        raise errors.IncompleteRequestError("query.merge: expected true or false")
    return value in {"true", "1"}

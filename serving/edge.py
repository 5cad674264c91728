"""Where HTTP meets the rest: bodies in, one table of statuses, strict JSON out, all counted."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import errors
from serving.metrics import REQUESTS, SECONDS
from stack.errors import FeaturesUnavailableError, GyreError

Endpoint = Callable[[Request], Awaitable[Response]]

SHOWN_ERRORS = 20
DEFECT = 500
STATUSES: dict[type[Exception], int] = {
    ClientDisconnect: 400,
    errors.NotFoundError: 404,
    errors.FeedbackConflictError: 409,
    errors.BodyTooLargeError: 413,
    errors.InvalidRequestError: 422,
    ValidationError: 422,
    errors.ModelFailedError: DEFECT,
    errors.NoModelError: 503,
    errors.NotLoggedError: 503,
    errors.KeeperSilentError: 503,
    errors.OverloadedError: 429,
    FeaturesUnavailableError: 503,
}
HEADERS: dict[type[Exception], dict[str, str]] = {
    FeaturesUnavailableError: {"retry-after": "1"},
    errors.OverloadedError: {"retry-after": "1"},
    errors.KeeperSilentError: {"retry-after": "5"},
    errors.BodyTooLargeError: {"connection": "close"},  # the rest of the body is not read
}
logger = logging.getLogger(__name__)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = to_json(content, inf_nan_mode="null")
    return Response(body, status, headers, media_type="application/json")


def edge(model: str, route: str, work: Endpoint) -> Endpoint:
    """Make an endpoint of `work`: its errors become answers, and each answer is counted."""
    seconds = SECONDS.labels(model, route)

    async def endpoint(request: Request) -> Response:
        start = time.perf_counter()
        try:
            response = await work(request)
        except Exception as exc:  # noqa: BLE001  (one place for all of them: see STATUSES)
            response = refusal(exc)
        REQUESTS.labels(model, route, response.status_code).inc()
        seconds.observe(time.perf_counter() - start)
        return response

    return endpoint


def refusal(exc: Exception) -> Response:
    """Answer an error: `detail` names what is wrong. What is not in the table is a defect."""
    status = STATUSES.get(type(exc), DEFECT)
    if status == DEFECT:
        logger.error("answered with 500", exc_info=exc)
    detail: Any = str(exc) if isinstance(exc, GyreError) else "internal error"
    if isinstance(exc, ValidationError):
        found = exc.errors(include_url=False, include_context=False, include_input=False)
        detail = [{**error, "loc": ["body", *error["loc"]]} for error in found[:SHOWN_ERRORS]]
    return json_response({"detail": detail}, status, HEADERS.get(type(exc)))


async def read_body(request: Request, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise errors.BodyTooLargeError(f"body: over {limit} bytes, the limit of this route")
        chunks.append(chunk)
    return b"".join(chunks)

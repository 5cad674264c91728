"""HTTP's edge: bodies are read, statuses are chosen, answers and errors are written as JSON."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.access.http_guard import PAGE_HEADERS
from core.errors import BrokerUnavailableError, FeaturesUnavailableError, GyreError
from serving import errors
from serving.memory import note_body

T = TypeVar("T")
JSON = "application/json"
JSON_TYPES = {JSON, "application/octet-stream"}
"""Content types of JSON. Triton's client sends its own JSON as the second one."""
HEADERS = "gyre.headers"
"""Key of a request's scope: its headers by name, which the middleware puts there."""
MAX_FIELD_ERRORS = 20
INLINE_BYTES = 4_096
"""Bodies up to here are read on the event loop; a larger one would hold up other requests."""
STATUSES: dict[type[Exception], int] = {
    ClientDisconnect: 400,
    errors.NotFoundError: 404,
    errors.InvalidRequestError: 422,
    ValidationError: 422,
    errors.OverloadedError: 429,
    errors.NoModelError: 503,
    FeaturesUnavailableError: 503,
    BrokerUnavailableError: 503,
}
"""An error that is not in this table is a defect, and answered with 500."""
MLFLOW_CODES = {
    401: "UNAUTHENTICATED",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}
INVALID = 422
logger = logging.getLogger(__name__)


def error_body(path: str, status: int, detail: Any) -> dict[str, Any]:
    """Write an error as the protocol that a path belongs to prescribes.

    Args:
        path: Path of the request.
        status: Status of the answer.
        detail: A text, or a list of fields as FastAPI has it.

    """
    text = detail
    if not isinstance(detail, str):
        fields = [
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in detail
        ]
        text = "; ".join(fields)
    if path.startswith(("/v1/", "/v2/")):  # KServe V1 and Open Inference
        return {"error": text}
    if path.endswith("/invocations"):  # MLflow's own server
        return {"error_code": MLFLOW_CODES.get(status, "BAD_REQUEST"), "message": text}
    return {"detail": detail}


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused; the body says why."},
    503: {"description": "Not possible now; the body says why."},
}
"""The errors of a route, for its documentation."""


def json_response(content: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json_bytes(content), status, headers, media_type=JSON)


def json_bytes(content: Any) -> bytes:
    """Return strict JSON: a number that is not finite is null."""
    return to_json(content, inf_nan_mode="null")


async def send_json(send: Send, body: bytes) -> None:
    """Answer 200 with a body of JSON, without the cost of a Response."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refusal(exc: Exception, path: str) -> Response:
    """Return the answer to a request of a path that failed; the answer names the error."""
    status = STATUSES.get(type(exc), 500)
    detail: Any = str(exc) if isinstance(exc, GyreError) else "internal error"
    headers = {"retry-after": "1"} if status in {429, 503} else None
    if isinstance(exc, HTTPException):
        status = exc.status_code
        detail = exc.detail
        headers = exc.headers  # type: ignore[assignment]
    elif isinstance(exc, ValidationError):
        fields = exc.errors(
            include_url=False, include_context=False, include_input=False
        )
        detail = [
            {**field, "loc": ["body", *field["loc"]]}
            for field in fields[:MAX_FIELD_ERRORS]
        ]
    elif type(exc) not in STATUSES:
        logger.error("answered with 500", exc_info=exc)
    body = error_body(path, status, detail)
    if status == INVALID and "detail" not in body:
        status = 400  # as the other protocols prescribe
    return json_response(body, status, headers)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a body of JSON. A body without a content type is taken for JSON, but not a browser's.

    A page can send such a body to another site without asking first; Triton's client sends no type
    either.

    Raises:
        HTTPException: 415: it is no JSON, or compressed. So forms of other sites are refused, too.
            413: it has more than `limit` bytes; nothing is read if its length says so.
        ClientDisconnect: The client went away.

    """
    headers = scope[HEADERS]
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    if b"content-type" not in headers and not PAGE_HEADERS & headers.keys():
        content_type = JSON
    kind = content_type.partition(";")[0].strip().lower()
    # Triton calls these binary tensors.
    if b"inference-header-content-length" in headers:
        raise HTTPException(415, "expected tensors in JSON, such as binary_data=False")
    if kind not in JSON_TYPES:
        raise HTTPException(415, f"content-type: expected {JSON}, found {kind!r}")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HTTPException(415, "content-encoding: expected an uncompressed body")
    size = int(headers.get(b"content-length", 0))
    body = bytearray()
    more = True
    while more and size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        size = max(size, len(body))
        more = message.get("more_body", False)
    note_body(len(body))
    if size > limit:  # the rest is not read
        text = f"body: over {limit} bytes, the limit of this route"
        raise HTTPException(413, text, {"connection": "close"})
    return bytes(body)


async def run_by_size(size: int, function: Callable[..., T], *args: Any) -> T:
    """Call a function; in a thread if it works on more than INLINE_BYTES bytes."""
    if size <= INLINE_BYTES:
        return function(*args)
    return await asyncio.to_thread(function, *args)

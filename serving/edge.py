"""Where HTTP meets the rest: bodies in, one table of statuses, strict JSON out, all counted."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import errors
from serving.metrics import REQUESTS, SECONDS, Tally
from stack.errors import BrokerUnavailableError, FeaturesUnavailableError, GyreError

Endpoint = Callable[[Request], Awaitable[Response]]

SHOWN_ERRORS = 20
BODY_SECONDS = 10.0
"""How long a body may take to arrive."""
WHOLE = "body_is_here"
"""In a request's state: nothing of it is still to come, so that nothing needs a clock."""
DEFECT = 500
OK, JSON, CONTENT_TYPE = 200, "application/json", (b"content-type", b"application/json")
STATUSES: dict[type[Exception], int] = {
    ClientDisconnect: 400,
    errors.UnauthorizedError: 401,
    errors.NotFoundError: 404,
    errors.BodyTimeoutError: 408,
    errors.BodyTooLargeError: 413,
    errors.WrongContentTypeError: 415,
    errors.InvalidRequestError: 422,
    ValidationError: 422,
    errors.OverloadedError: 429,
    errors.ModelFailedError: DEFECT,
    errors.NoModelError: 503,
    errors.KeeperSilentError: 503,
    FeaturesUnavailableError: 503,
    BrokerUnavailableError: 503,
}
RETRY, CLOSE = {"retry-after": "1"}, {"connection": "close"}
HEADERS: dict[type[Exception], dict[str, str]] = {
    FeaturesUnavailableError: RETRY,
    BrokerUnavailableError: RETRY,
    errors.NoModelError: RETRY,
    errors.OverloadedError: RETRY,
    errors.KeeperSilentError: {"retry-after": "5"},
    errors.UnauthorizedError: {"www-authenticate": "Bearer"},
    errors.BodyTooLargeError: CLOSE,  # the rest of the body is not read
    errors.BodyTimeoutError: CLOSE,
}
logger = logging.getLogger(__name__)


class FieldError(BaseModel):
    type: str
    loc: list[str | int]
    msg: str


class Detail(BaseModel):
    detail: str | list[FieldError]


@dataclass(frozen=True)
class ErrorForm:
    """How a protocol says no: a body for a status and what is wrong (a text, or its fields)."""

    shown: type[BaseModel] = Detail
    write: Callable[[int, Any], dict[str, Any]] = lambda _, detail: {"detail": detail}
    statuses: Mapping[int, int] = field(default_factory=dict)
    """Where the protocol has another status than ours."""

    def response(self, status: int, detail: Any, headers: Mapping[str, str] | None) -> Response:
        status = self.statuses.get(status, status)
        return json_response(self.write(status, detail), status, headers)


PLAIN = ErrorForm()


def in_words(detail: Any) -> str:
    """One line of what is wrong, for forms that hold a text only."""
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in detail)


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    body = to_json(content, inf_nan_mode="null")
    if status == OK and headers is None:
        return _Json(body)
    return Response(body, status, headers, media_type=JSON)


class _Json(Response):
    """An answer, of which only the length has to be found out."""

    status_code, background = OK, None

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), CONTENT_TYPE]


def edge(model: str, route: str, work: Endpoint, form: ErrorForm = PLAIN) -> Endpoint:
    """Make an endpoint of `work`: its errors become answers, and each answer is counted."""
    tally = Tally(REQUESTS, SECONDS, model, route)

    async def endpoint(request: Request) -> Response:
        start = time.perf_counter()
        try:
            response = await work(request)
        except Exception as exc:  # noqa: BLE001  (one place for all of them: see STATUSES)
            response = refusal(exc, form)
        tally.add((response.status_code,), (time.perf_counter() - start,))
        return response

    return endpoint


def refusal(exc: Exception, form: ErrorForm = PLAIN) -> Response:
    """Answer an error, naming what is wrong. What is not in the table is a defect."""
    if isinstance(exc, HTTPException):
        return form.response(exc.status_code, exc.detail, exc.headers)
    status = STATUSES.get(type(exc), DEFECT)
    if status == DEFECT:
        logger.error("answered with 500", exc_info=exc)
    detail: Any = str(exc) if isinstance(exc, GyreError) else "internal error"
    if isinstance(exc, ClientDisconnect):
        detail = "the client went away"
    if isinstance(exc, ValidationError):
        found = exc.errors(include_url=False, include_context=False, include_input=False)
        detail = [{**error, "loc": ["body", *error["loc"]]} for error in found[:SHOWN_ERRORS]]
    return form.response(status, detail, HEADERS.get(type(exc)))


async def read_body(request: Request, limit: int, also: str | None = None) -> bytes:
    """Read the body of a request: JSON, or the content type `also`; one that names none is JSON.

    Raises:
        WrongContentTypeError, BodyTooLargeError (nothing is read of one that says so itself),
        BodyTimeoutError: not here within BODY_SECONDS.

    """
    _check_headers(request, limit, (JSON, also))
    if WHOLE in request.scope.get("state", ()):
        return await _read(request, limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(request, limit)
    except TimeoutError as exc:
        raise errors.BodyTimeoutError(f"body: not complete within {BODY_SECONDS:g} s") from exc


async def _read(request: Request, limit: int) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        size += len(message["body"])
        if size > limit:
            raise _too_large(limit)
        chunks.append(message["body"])
        more = message["more_body"]
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _check_headers(request: Request, limit: int, types: tuple[str, str | None]) -> None:
    """A form that a foreign page can send without asking is no JSON: refused, not guessed."""
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower().decode("latin-1")
            if kind not in types:
                raise errors.WrongContentTypeError(f"content-type: expected {JSON}, found {kind!r}")
        elif name == b"content-length":
            if int(value) > limit:
                raise _too_large(limit)
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise errors.WrongContentTypeError("content-encoding: expected an uncompressed body")


def _too_large(limit: int) -> errors.BodyTooLargeError:
    return errors.BodyTooLargeError(f"body: over {limit} bytes, the limit of this route")

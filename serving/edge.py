"""Where HTTP meets the rest: bodies in, one table of statuses, strict JSON out."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import errors
from stack.errors import BrokerUnavailableError, FeaturesUnavailableError, GyreError

Endpoint = Callable[[Request], Awaitable[Response]]

SHOWN_ERRORS = 20
DEFECT = 500
JSON = "application/json"
JSON_BYTES = JSON.encode()
STATUSES: dict[type[Exception], int] = {
    ClientDisconnect: 400,
    errors.UnauthorizedError: 401,
    errors.NotFoundError: 404,
    errors.BodyTooLargeError: 413,
    errors.WrongContentTypeError: 415,
    errors.InvalidRequestError: 422,
    ValidationError: 422,
    errors.OverloadedError: 429,
    errors.ModelFailedError: DEFECT,
    errors.NoModelError: 503,
    FeaturesUnavailableError: 503,
    BrokerUnavailableError: 503,
}
RETRY = {"retry-after": "1"}
HEADERS: dict[type[Exception], dict[str, str]] = {
    FeaturesUnavailableError: RETRY,
    BrokerUnavailableError: RETRY,
    errors.NoModelError: RETRY,
    errors.OverloadedError: RETRY,
    errors.UnauthorizedError: {"www-authenticate": "Bearer"},
    errors.BodyTooLargeError: {"connection": "close"},  # the rest of the body is not read
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
    """The error schema of a protocol: a body for a status and what is wrong (a text, or fields)."""

    shown: type[BaseModel] = Detail
    write: Callable[[int, Any], dict[str, Any]] = lambda _, detail: {"detail": detail}
    statuses: Mapping[int, int] = field(default_factory=dict)
    """Where the protocol has another status than ours."""

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """What /docs show of a route of FastAPI's own: its argument `responses`."""
        refused = {"model": self.shown, "description": "Refused: says what is wrong."}
        return {"4XX": refused, 503: refused | {"description": "Not ready: says why."}}

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
    return Response(to_json(content, inf_nan_mode="null"), status, headers, media_type=JSON)


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
        fields = exc.errors(include_url=False, include_context=False, include_input=False)
        detail = [{**error, "loc": ["body", *error["loc"]]} for error in fields[:SHOWN_ERRORS]]
    return form.response(status, detail, HEADERS.get(type(exc)))


async def read_body(request: Request, limit: int, also: str | None = None) -> bytes:
    """Read the body of a request: JSON, or the content type `also`; one that names none is JSON.

    Raises:
        WrongContentTypeError; BodyTooLargeError (nothing is read of one that says so itself).

    """
    _check_headers(dict(request.scope["headers"]), limit, also)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _check_headers(headers: Mapping[bytes, bytes], limit: int, also: str | None) -> None:
    """A form that a foreign page can send without asking is no JSON: refused, not guessed."""
    sent = headers.get(b"content-type", JSON_BYTES)
    if sent != JSON_BYTES:
        kind = sent.partition(b";")[0].strip().lower().decode("latin-1")
        if kind not in {JSON, also}:
            raise errors.WrongContentTypeError(f"content-type: expected {JSON}, found {kind!r}")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise errors.WrongContentTypeError("content-encoding: expected an uncompressed body")
    if int(headers.get(b"content-length", 0)) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> errors.BodyTooLargeError:
    return errors.BodyTooLargeError(f"body: over {limit} bytes, the limit of this route")

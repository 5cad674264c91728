"""Where HTTP meets the rest: bodies in, one table of statuses, strict JSON out."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import errors
from stack.errors import BrokerUnavailableError, FeaturesUnavailableError, GyreError

SHOWN_ERRORS = 20
DEFECT = 500
JSON = "application/json"
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
HEADERS: dict[int, dict[str, str]] = {
    401: {"www-authenticate": "Bearer"},
    413: {"connection": "close"},  # the rest of the body is not read
    429: RETRY,
    503: RETRY,
}
logger = logging.getLogger(__name__)


class FieldError(BaseModel):
    type: str
    loc: list[str | int]
    msg: str


class Detail(BaseModel):
    detail: str | list[FieldError]


class ErrorText(BaseModel):
    error: str


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


def in_words(detail: Any) -> str:
    """One line of what is wrong, for forms that hold a text only."""
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in detail)


PLAIN = ErrorForm()
KSERVE = ErrorForm(ErrorText, lambda _, detail: {"error": in_words(detail)}, {422: 400})
"""Of both its protocols."""


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(to_json(content, inf_nan_mode="null"), status, headers, media_type=JSON)


def refusal(exc: Exception, form: ErrorForm) -> Response:
    """Answer an error, naming what is wrong. What is not in the table is a defect."""
    status = STATUSES.get(type(exc), DEFECT)
    headers: Mapping[str, str] | None = HEADERS.get(status)
    detail: Any = str(exc) if isinstance(exc, GyreError) else "internal error"
    if isinstance(exc, HTTPException):
        status, detail, headers = exc.status_code, exc.detail, exc.headers
    elif isinstance(exc, ValidationError):
        fields = exc.errors(include_url=False, include_context=False, include_input=False)
        detail = [{**error, "loc": ["body", *error["loc"]]} for error in fields[:SHOWN_ERRORS]]
    elif status == DEFECT:
        logger.error("answered with 500", exc_info=exc)
    return json_response(form.write(status, detail), form.statuses.get(status, status), headers)


async def read_body(request: Request, limit: int, also: str | None = None) -> bytes:
    """Read the body of a request: JSON, or the content type `also`; one that names none is JSON.

    Raises:
        WrongContentTypeError: it is neither, as is a form that a foreign page can send unasked.
        BodyTooLargeError: nothing is read of one that says so itself.

    """
    headers = dict(request.scope["headers"])
    sent = headers.get(b"content-type", b"application/json").decode("latin-1")
    kind = sent.partition(";")[0].strip().lower()
    if kind not in {JSON, also}:
        raise errors.WrongContentTypeError(f"content-type: expected {JSON}, found {kind!r}")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise errors.WrongContentTypeError("content-encoding: expected an uncompressed body")
    too_large = int(headers.get(b"content-length", 0)) > limit
    body = bytearray()
    more = True
    while more and not too_large:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        too_large = len(body) > limit
        more = message.get("more_body", False)
    if too_large:
        raise errors.BodyTooLargeError(f"body: over {limit} bytes, the limit of this route")
    return bytes(body)

"""Where HTTP meets the rest: bodies in, one table of statuses, strict JSON out."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.errors import BrokerUnavailableError, FeaturesUnavailableError, GyreError
from serving import errors

SHOWN_ERRORS = 20
JSON = "application/json"
Headers = Mapping[str, str] | None
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
    """A protocol's errors: schema, what writes status and detail, status of what is invalid."""

    shown: type[BaseModel] = Detail
    write: Callable[[int, Any], dict[str, Any]] = lambda _, detail: {"detail": detail}
    invalid: int = 422

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """For the routes that FastAPI documents."""
        refused = {"model": self.shown, "description": "Refused: says what is wrong."}
        return {"4XX": refused, 503: refused | {"description": "Not ready: says why."}}

    def status(self, status: int) -> int:
        return self.invalid if status == PLAIN.invalid else status


def in_words(detail: Any) -> str:
    if isinstance(detail, str):
        return detail
    return "; ".join(
        f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in detail
    )


PLAIN = ErrorForm()
KSERVE = ErrorForm(ErrorText, lambda _, detail: {"error": in_words(detail)}, 400)
"""Of both its protocols."""


def json_response(content: Any, status: int = 200, headers: Headers = None) -> Response:
    return Response(
        to_json(content, inf_nan_mode="null"), status, headers, media_type=JSON
    )


def refusal(exc: Exception, form: ErrorForm) -> Response:
    """Answer an error, naming what is wrong. What is not in the table is a defect."""
    status = STATUSES.get(type(exc), 500)
    headers: Headers = {"retry-after": "1"} if status in {429, 503} else None
    detail: Any = str(exc) if isinstance(exc, GyreError) else "internal error"
    if isinstance(exc, HTTPException):
        status, detail, headers = exc.status_code, exc.detail, exc.headers
    elif isinstance(exc, ValidationError):
        fields = exc.errors(
            include_url=False, include_context=False, include_input=False
        )
        detail = [
            {**error, "loc": ["body", *error["loc"]]} for error in fields[:SHOWN_ERRORS]
        ]
    elif type(exc) not in STATUSES:  # a defect
        logger.error("answered with 500", exc_info=exc)
    return json_response(form.write(status, detail), form.status(status), headers)


async def read_body(request: Request, limit: int, also: str | None = None) -> bytes:
    """Read a body of JSON, or of the content type `also`; one that names none is JSON.

    Raises HTTPException: 415, also for a form that a foreign page can send unasked; 413, before
    anything is read of a body that says itself that it is over `limit` bytes.
    """
    headers = dict(request.scope["headers"])
    sent = headers.get(b"content-type", b"application/json").decode("latin-1")
    kind = sent.partition(";")[0].strip().lower()
    if kind not in {JSON, also}:
        raise HTTPException(415, f"content-type: expected {JSON}, found {kind!r}")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HTTPException(415, "content-encoding: expected an uncompressed body")
    size = int(headers.get(b"content-length", 0))
    body = bytearray()
    more = True
    while more and size <= limit:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        size = max(size, len(body))
        more = message.get("more_body", False)
    if size > limit:  # the rest is not read
        text = f"body: over {limit} bytes, the limit of this route"
        raise HTTPException(413, text, {"connection": "close"})
    return bytes(body)

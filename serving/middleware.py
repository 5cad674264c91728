"""What every request passes: tokens, a request id, errors made answers, its count.

The request id is a client's `x-request-id`, if it is a short plain word, else a new one, and stands
in every log line of the request. A prediction's `request_id` is another.
"""

import hmac
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.tokens import tokens_of
from serving.edge import ErrorForm, refusal
from serving.metrics import REQUESTS, SECONDS
from serving.worker import REQUEST_ID

HEADER = b"x-request-id"
SAFE = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")
PROBES = (
    "/health",
    "/health/live",
    "/health/ready",
    "/v2/health/live",
    "/v2/health/ready",
)
OPEN = frozenset({*PROBES, "/ping", "/metrics"})  # need no token
LOOK_SECONDS = 1.0
logger = logging.getLogger(__name__)


class Access:
    """Bearer tokens of a file, read once a second; where it is of no use, all are refused."""

    def __init__(self, tokens_file: Path) -> None:
        self.tokens_file = tokens_file
        self._digests: list[bytes] = []
        self._look_at, self._problem = 0.0, ""

    def allows(self, authorization: bytes) -> bool:
        """Whether the value of an `Authorization` header (b"": none) holds a token."""
        if time.monotonic() >= self._look_at:
            self._look()
        scheme, _, token = authorization.partition(b" ")
        found = sha256(token.strip()).digest()
        # Each is compared: the time says nothing about which it is.
        matches = sum(hmac.compare_digest(digest, found) for digest in self._digests)
        return matches > 0 and scheme.lower() == b"bearer"

    def _look(self) -> None:
        self._look_at = time.monotonic() + LOOK_SECONDS
        before = self._problem
        try:
            tokens = tokens_of(self.tokens_file.read_bytes())
            self._problem = "" if tokens else "no token in it"
        except OSError as exc:
            tokens = []
            self._problem = str(exc.strerror)
        self._digests = [sha256(token).digest() for token in tokens]
        if self._problem and self._problem != before:
            logger.error(
                "%s: %s: every request is refused", self.tokens_file, self._problem
            )
        elif before and not self._problem:
            logger.warning("%s: %d tokens are valid", self.tokens_file, len(tokens))


class RequestMiddleware:
    def __init__(
        self,
        app: FastAPI,
        scoring: Mapping[str, ASGIApp],
        access: Access | None,
        form_of: Callable[[str], ErrorForm],
    ) -> None:
        """scoring: endpoints by path, called past FastAPI's router, which takes a tenth longer."""
        self.app = app
        self._scoring = scoring
        self._access = access
        self._form_of = form_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        path = scope["path"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(HEADER, b"")
        if not SAFE.fullmatch(request_id):
            request_id = b"%032x" % random.getrandbits(128)
        REQUEST_ID.set(request_id.decode())
        status = 0
        route = ""

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id)]
            await send(message)

        try:
            if self._access is not None and path not in OPEN:
                _check_token(self._access, headers)
            if endpoint := self._scoring.get(path):
                route = path
                await endpoint(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except Exception as exc:
            if status:  # the answer has begun: the server closes the connection
                raise
            await refusal(exc, self._form_of(path))(scope, receive, answer)
        finally:
            route = route or getattr(scope.get("route"), "path", "")
            requests, seconds = _meters(scope.get("model", ""), route, status)
            requests.inc()
            seconds.observe(time.perf_counter() - began)


def _check_token(access: Access, headers: Mapping[bytes, bytes]) -> None:
    if not access.allows(headers.get(b"authorization", b"")):
        text = "expected a valid token: `Authorization: Bearer TOKEN`"
        raise HTTPException(401, text, {"www-authenticate": "Bearer"})


@cache
def _meters(model: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Found once each: to look them up takes as long as to count."""
    return REQUESTS.labels(model, route, status), SECONDS.labels(model, route)

"""Steps of every request: its origin and its token are checked, it gets an id, errors are answered, it
is counted.

The id stands in the header `x-request-id` of the answer and in the log lines of the request. Behind
a proxy it is the one that the proxy sets, else a new one. A prediction's `request_id` is the id of a
row.
"""

import hmac
import logging
import random
import re
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.access.http_guard import HttpGuard
from core.tokens import read_tokens
from serving.http.draining import Draining
from serving.http.edge import HEADERS, refusal
from serving.metrics import REQUESTS, count
from serving.program_log import REQUEST_ID

ID_HEADER = b"x-request-id"
PROXY_ID = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")
DOCS = "/docs"
METRICS = "/metrics"
"""A proxy refuses this path by its name, so it has no other, such as `/metrics/`."""
OPEN_PATHS = frozenset(
    {
        DOCS,
        "/health/live",
        "/health/ready",
        METRICS,
        "/openapi.json",
        "/ping",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
ASSETS = "/static-offline-docs/"
"""Files of the page /docs. They and OPEN_PATHS need no token."""
PAGE_HEADERS = {
    DOCS: [
        (b"content-security-policy", b"frame-ancestors 'self'"),
        (b"x-frame-options", b"SAMEORIGIN"),
    ]
}
"""Headers of a page: no other site may show it in a frame, as its buttons send requests."""
TOKEN_READ_SECONDS = 1.0
logger = logging.getLogger(__name__)


class Access:
    """Bearer tokens of a file, which is read once a second."""

    def __init__(self, tokens_file: Path) -> None:
        self.tokens_file = tokens_file
        self._digests: list[bytes] = []
        self._next_read = 0.0
        self._problem = ""

    def allows(self, authorization: bytes) -> bool:
        """Whether the value of an `Authorization` header (b"": there is none) holds a token."""
        if time.monotonic() >= self._next_read:
            self._read_tokens()
        scheme, _, token = authorization.partition(b" ")
        digest = sha256(token.strip()).digest()
        # Each is compared, so that the time says nothing about which one it is.
        matches = sum(hmac.compare_digest(valid, digest) for valid in self._digests)
        return matches > 0 and scheme.lower() == b"bearer"

    def _read_tokens(self) -> None:
        self._next_read = time.monotonic() + TOKEN_READ_SECONDS
        tokens, problem = read_tokens(self.tokens_file)
        self._digests = [sha256(token).digest() for token in tokens]
        if problem != self._problem:
            text = f"{self.tokens_file}: {problem or 'is read again'}"
            logger.warning("%s: %d tokens are valid", text, len(tokens))
        self._problem = problem


class RequestMiddleware:
    """The application that the server calls: `app` behind these steps."""

    def __init__(
        self,
        app: FastAPI,
        scoring: Mapping[str, ASGIApp],
        access: Access | None,
        *,
        guard: HttpGuard,
        draining: Draining,
        behind_proxy: bool,
    ) -> None:
        """Put an application behind the middleware.

        Args:
            app: Answers every path that is not in `scoring`.
            scoring: Endpoints by path. They are called past the router of `app`, which would take
                a tenth of their time.
            access: Tokens that are valid; None: no token is needed.
            guard: Refuses requests for other names, and those that other sites send.
            draining: Adds headers to each answer while the server ends.
            behind_proxy: Whether the request's id is that of a proxy.

        """
        self.app = app
        self._scoring = scoring
        self._access = access
        self._guard = guard
        self._draining = draining
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path.endswith("/"):  # a slash at the end means nothing
            path = _without_slashes(path)
            scope["path"] = path
        if scope["method"] == "HEAD":
            # In a copy: by its own scope uvicorn leaves out the body.
            scope = {**scope, "method": "GET"}
        headers: dict[bytes, bytes] = dict(scope["headers"])
        scope[HEADERS] = headers
        request_id = self._request_id(headers)
        REQUEST_ID.set(request_id.decode())
        endpoint = self._scoring.get(path)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((ID_HEADER, request_id))
                message["headers"] += self._draining.headers
                message["headers"] += PAGE_HEADERS.get(path, [])
            await send(message)

        try:
            _check_site(self._guard, scope)
            if self._access is not None:
                _check_token(self._access, path, headers)
            if endpoint is None:
                await self.app(scope, receive, answer)
            else:
                await endpoint(scope, receive, answer)
        except Exception as exc:
            if status:  # the answer has begun: the server closes the connection
                raise
            response = refusal(exc, path)
            await response(scope, receive, answer)
        finally:
            route = path if endpoint else getattr(scope.get("route"), "path", "")
            count(REQUESTS, scope.get("model", ""), route, f"{status}")

    def _request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        if self._behind_proxy:
            proxy_id = headers.get(ID_HEADER, b"")
            if PROXY_ID.fullmatch(proxy_id):
                return proxy_id
        return b"%032x" % random.getrandbits(128)


def _without_slashes(path: str) -> str:
    """Return a path without slashes at its end; METRICS with one stays as it is, and is nothing."""
    shorter_path = path.rstrip("/") or "/"
    return path if shorter_path == METRICS else shorter_path


def _check_site(guard: HttpGuard, scope: Scope) -> None:
    site_refusal = guard.refusal(
        scope["method"], scope["http_version"], scope["headers"]
    )
    if site_refusal is not None:
        # The body is not read, so the connection ends.
        raise HTTPException(
            site_refusal.status, site_refusal.text, {"connection": "close"}
        )


def _check_token(access: Access, path: str, headers: Mapping[bytes, bytes]) -> None:
    if path in OPEN_PATHS or path.startswith(ASSETS):
        return
    if not access.allows(headers.get(b"authorization", b"")):
        text = "expected a valid token: `Authorization: Bearer TOKEN`"
        raise HTTPException(401, text, {"www-authenticate": "Bearer"})

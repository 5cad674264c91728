"""The one middleware: request id, tokens, errors made answers, every request counted.

The request id is a client's `x-request-id`, if it is a short plain word, else a new one. It stands
in the answer's header and in every log line of the request. It is not the `request_id` of a
prediction: that one is of a row, unique, and what feedback names.
"""

import random
import re
import time
from collections.abc import Callable, Mapping
from functools import cache

from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import OPEN, Access
from serving.edge import ErrorForm, refusal
from serving.errors import UnauthorizedError
from serving.json_logs import REQUEST_ID
from serving.metrics import REQUESTS, SECONDS

HEADER = b"x-request-id"
SAFE = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")


class RequestMiddleware:
    """Stands before the whole application. `app`: FastAPI's, behind it."""

    def __init__(
        self,
        app: FastAPI,
        scoring: Mapping[str, ASGIApp],
        access: Access | None,
        form_of: Callable[[str], ErrorForm],
    ) -> None:
        """scoring: endpoints by path that are called at once: through FastAPI's stack and router a
        prediction takes a tenth longer. form_of: the error form of the protocol of a path.
        """
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
            self._check_token(path, headers)
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

    def _check_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._access is None or path in OPEN:
            return
        if not self._access.allows(headers.get(b"authorization", b"")):
            raise UnauthorizedError("expected a valid token: `Authorization: Bearer TOKEN`")


@cache
def _meters(model: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Found once each: to look them up takes as long as to count."""
    return REQUESTS.labels(model, route, status), SECONDS.labels(model, route)

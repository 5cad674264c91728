"""The one middleware: request id, tokens, errors made answers, every request counted.

The request id is a client's `x-request-id`, if it is a short plain word, else a new one. It stands
in the answer's header and in every log line of the request. It is not the `request_id` of a
prediction: that one is of a row, unique, and what feedback names.
"""

import random
import re
import time
from collections.abc import Callable, Sequence

from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import OPEN, Access
from serving.edge import ErrorForm, refusal
from serving.errors import UnauthorizedError
from serving.json_logs import REQUEST_ID
from serving.metrics import REQUESTS, SECONDS

HEADER = b"x-request-id"
SAFE = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")


class RequestMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[BaseRoute],
        access: Access | None,
        form_of: Callable[[str], ErrorForm],
    ) -> None:
        """routes: looked at before `app`, behind whose router a prediction takes a tenth longer.

        form_of: the error form of the protocol that a path belongs to.
        """
        self._app = app
        self._router = Router(routes, redirect_slashes=False, default=app)
        self._access = access
        self._form_of = form_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = _id_of(headers.get(HEADER))
        REQUEST_ID.set(request_id.decode())
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id)]
            await send(message)

        try:
            self._check_token(scope["path"], headers)
            await self._router(scope, receive, answer)
        except Exception as exc:
            if status:  # the answer has begun: the server closes the connection
                raise
            await refusal(exc, self._form_of(scope["path"]))(scope, receive, answer)
        finally:
            model = scope.get("model", "")
            route = getattr(scope.get("route"), "path", "")
            REQUESTS.labels(model, route, status).inc()
            SECONDS.labels(model, route).observe(time.perf_counter() - began)

    def _check_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._access is None or path in OPEN:
            return
        if not self._access.allows(headers.get(b"authorization", b"")):
            raise UnauthorizedError("expected a valid token: `Authorization: Bearer TOKEN`")


def _id_of(sent: bytes | None) -> bytes:
    if sent is not None and SAFE.fullmatch(sent):
        return sent
    return b"%032x" % random.getrandbits(128)

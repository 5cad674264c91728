"""The way of the requests that come most, past the machinery of routes, tasks and parsing.

It is taken by a request that came in one piece behind a head (request line and headers) that this
worker has had before, byte for byte: what httptools and FastAPI made of that head is true of this
one too. Everything else goes through FastAPI, and is answered the same.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serving.access import Access
from serving.edge import JSON, ErrorForm, refusal
from serving.metrics import REQUESTS, SECONDS, Tally
from serving.protocols import Scores, Write
from serving.scorer import Waiting

INLINE_BYTES = 4_096
"""Bodies up to here are read on the event loop; a larger one would hold up the others."""
MOST_HEADS, HEAD_BYTES = 1_000, 4_096
"""Heads that are remembered, and bytes of one."""
DECIDING = {
    b"expect", b"transfer-encoding", b"content-encoding", b"upgrade",
    b"inference-header-content-length",
}  # fmt: skip
"""Headers that say how a body is to be read."""
Headers = Sequence[tuple[bytes, bytes]]


class HotRoute:
    """A route that scores, asked for by its path alone."""

    def __init__(self, route: Scores, form: ErrorForm) -> None:
        self._translate, self._scorer, self._form = route.translate, route.model.scorer, form
        self._tally = Tally(REQUESTS, SECONDS, route.model.names[0], route.path)
        scope = {"type": "http", "path": route.path, "query_string": b"", "headers": []}
        self._http = HttpRequest(scope | {"path_params": {}})

    def begin(self, body: bytes, reply: Callable[[Response], None]) -> None:
        """Answer `body`; `reply` is called once, on the event loop, maybe at once."""
        start, received = time.perf_counter(), datetime.now(UTC)

        def answered(response: Response) -> None:
            self._tally.add((response.status_code,), (time.perf_counter() - start,))
            reply(response)

        def done(waiting: Waiting) -> None:
            answered(self._response(waiting, write))

        try:
            asked, write = self._translate(body, self._http)
            self._scorer.begin(asked, received, done)
        except Exception as exc:  # noqa: BLE001
            answered(refusal(exc, self._form))

    def _response(self, waiting: Waiting, write: Write) -> Response:
        if waiting.error is not None:
            return refusal(waiting.error, self._form)
        try:
            return write(waiting.answers)
        except Exception as exc:  # noqa: BLE001  (edge.STATUSES has them)
            return refusal(exc, self._form)


@dataclass(frozen=True, slots=True)
class Head:
    """What was understood of a head."""

    route: HotRoute
    length: int
    authorization: bytes


class Hot:
    """The heads that this worker has had, and how many of their requests are under way."""

    def __init__(self, routes: Mapping[str, HotRoute], access: Access | None) -> None:
        self._routes, self._access = routes, access
        self._known: dict[bytes, Head] = {}
        self.under_way = 0

    def head(self, head: bytes) -> Head | None:
        """Return what is known of `head`; None also where its token is not valid (any more)."""
        found = self._known.get(head)
        if found is None or self._access is None or self._access.allows(found.authorization):
            return found
        return None

    def learn(self, head: bytes, path: str, query: bytes, headers: Headers) -> None:
        """Remember a head that httptools has parsed as a POST of HTTP/1.1 that stays open.

        Not of who has no valid token: he could fill the memory, and make others' heads go.
        """
        route, sent = self._routes.get(path), dict(headers)
        kind = sent.get(b"content-type", JSON.encode()).partition(b";")[0].strip().lower()
        length = int(sent.get(b"content-length", b"0"))
        plain = len(sent) == len(headers) and not DECIDING & sent.keys() and kind == JSON.encode()
        if route is None or query or not plain or length > INLINE_BYTES or len(head) > HEAD_BYTES:
            return
        authorization = sent.get(b"authorization", b"")
        if self._access is not None and not self._access.allows(authorization):
            return
        if len(self._known) >= MOST_HEADS:  # of clients that number their requests, say
            self._known.clear()
        self._known[head] = Head(route, length, authorization)

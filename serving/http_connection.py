"""A connection of uvicorn's with bounds: httptools takes a head of any size, for any time."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.edge import WHOLE
from serving.metrics import OVERLOADED

if TYPE_CHECKING:
    from asyncio import TimerHandle, Transport

    from fastapi import FastAPI
    from starlette.responses import Response

    from serving.hot import Hot, HotRoute

HEAD_BYTES = 65_536
"""Of a request line and its headers; what one read of the socket brings may be above it."""
HEAD_SECONDS = 10.0
"""How long they may take to arrive."""
KEEP_ALIVE_LOOK, PACKET_SECONDS = 1.0, 0.1

MOST_REQUESTS = 512
"""That are under way at once in a worker: a few hundredths of a second of its work."""
BUSY_BODY = (
    b'{"detail":"too many requests wait: try again","error":"too many requests wait: try again"}'
)
BUSY = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n%%b\r\n%b" % (len(BUSY_BODY), BUSY_BODY)
)
"""In every protocol's form at once: which it is, nobody has looked."""
BUSY_SECONDS = 0.1
"""Until it is said: who asks again at once would take the time of those who are answered."""
CRLF = b"\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r\n", re.IGNORECASE)


def body_length(head: bytes) -> int | None:
    """Bytes that the body of a POST has by its head; None: it is none, or does not say."""
    found = LENGTH.search(head + b"\r\n") if head.startswith(b"POST ") else None
    return int(found[1]) if found else None


class BoundedConnection(HttpToolsProtocol):
    """Refuses what never becomes a request, in our form: no route, so no protocol, is known yet.

    Requests that `serving.hot` knows are answered here, in turn with uvicorn's own.
    """

    _in_head, _in_message, _head = True, False, 0
    """Where the parser is: an answer may be given before all of its request has come."""
    _late: TimerHandle | None = None
    _asked = _ending = False
    """A hot request is under way, or waits to be turned away; behind it the connection closes."""
    _begun, _behind, _answered = b"", b"", 0.0
    """What has come of one whose body is not here; what came behind it; when it was answered."""
    _slow: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hot: Hot = cast("FastAPI", self.config.loaded_app).state.hot
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._asked:  # answers go in the order of the requests
            self._behind += data
            self.transport.pause_reading()
        elif self._between_requests():
            self._begin(self._begun + data)
        else:
            self._received(data)

    def _begin(self, data: bytes) -> None:
        head, end, body = data.partition(b"\r\n\r\n")
        known = self._hot.head(head) if end and not self.flow.write_paused else None
        if known is not None and len(body) < known.length:
            self._wait_for_body(data)
            return
        self._begun = b""
        if known is not None and len(body) == known.length and not self._busy:
            self._ask(known.route, body)
            return
        length = body_length(head) if end else None
        if self._busy and length == len(body):
            self._rest()
            # Of a head that the parser has not seen, nobody knows where its request ends.
            self._asked, self._ending = True, self._ending or known is None
            self.loop.call_later(BUSY_SECONDS, self._turn_away)
            return
        self._received(data)
        if known is None and length is not None and len(body) <= length:
            self._learn(head)

    @property
    def _busy(self) -> bool:
        return len(self.tasks) + self._hot.under_way >= MOST_REQUESTS

    def _turn_away(self) -> None:
        """Before anything is parsed or begun: what is refused must cost next to nothing."""
        OVERLOADED.inc()
        self._answer(BUSY % (b"connection: close\r\n" if self._ending else b""))

    def _wait_for_body(self, data: bytes) -> None:
        """Many clients send it in a packet of its own; if not at once, uvicorn has the clock."""
        if not self._begun:
            self._slow = self.loop.call_later(PACKET_SECONDS, self._go_on)
        self._begun = data

    def _go_on(self) -> None:
        begun, self._begun = self._begun, b""
        if begun:
            self._received(begun)

    def _learn(self, head: bytes) -> None:
        """What httptools found must be all of the head, and nothing but it."""
        scope, cycle = self.scope, self.cycle
        whole = cycle is not None and cycle.scope is scope and b"\n" not in head.replace(CRLF, b"")
        if whole and scope["http_version"] == "1.1" and cycle.keep_alive:
            self._hot.learn(head, scope["path"], scope["query_string"], self.headers)

    def _ask(self, route: HotRoute, body: bytes) -> None:
        self._rest()
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        self._asked = True
        self._hot.under_way += 1
        route.begin(body, self._reply)

    def _reply(self, response: Response) -> None:
        self._hot.under_way -= 1
        lines = [STATUS_LINE[response.status_code]]
        for name, value in (*self.server_state.default_headers, *response.raw_headers):
            lines += (name, b": ", value, b"\r\n")
        self._answer(b"".join((*lines, b"\r\n", bytes(response.body))))

    def _answer(self, data: bytes) -> None:
        self._asked, self._answered = False, self.loop.time()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.transport.write(data)
        if self._ending:  # what came behind is not begun: nobody would get its answer
            self.transport.close()
            return
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_handler()
        if self._behind:
            behind, self._behind = self._behind, b""
            self.transport.resume_reading()
            self.data_received(behind)

    def timeout_keep_alive_handler(self) -> None:
        """Close what has been idle for so long; a clock for every answer would cost as much."""
        left = self._answered + self.timeout_keep_alive - self.loop.time()
        if self._asked or left > 0:
            wait = max(left, KEEP_ALIVE_LOOK)
            again = self.loop.call_later(wait, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = again
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        self._go_on()
        if self._asked:
            self._ending = True
        else:
            super().shutdown()

    def _received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            self._rest()
            return
        self._head += len(data)
        if self._head > HEAD_BYTES:
            self._refuse(431, f"headers: over {HEAD_BYTES} bytes")
        elif self._late is None:
            self._wait()

    def _between_requests(self) -> bool:
        return not self._in_message and (self.cycle is None or self.cycle.response_complete)

    def on_message_begin(self) -> None:
        self._in_head, self._in_message, self._head = True, True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        self.scope["state"][WHOLE] = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        self._begun = b""
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _wait(self) -> None:
        text = f"headers: not complete within {HEAD_SECONDS:g} s"
        self._late = self.loop.call_later(HEAD_SECONDS, self._refuse, 408, text)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: int, text: str) -> None:
        self._rest()
        owed = self._in_head and self.cycle is not None and not self.cycle.response_complete
        if owed:  # the refusal would be taken for the answer to the request before
            self.transport.close()
        if self.transport.is_closing():
            return
        body = to_json({"detail": text})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

"""A connection of uvicorn's with bounds: httptools takes a head of any size, for any time."""

import re
from asyncio import TimerHandle, Transport
from http import HTTPStatus

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.edge import WHOLE
from serving.metrics import OVERLOADED

HEAD_BYTES = 65_536
"""Of a request line and its headers; what one read of the socket brings may be above it."""
HEAD_SECONDS = 10.0
"""How long they may take to arrive."""

MOST_REQUESTS = 512
"""That are under way at once in a worker: a few hundredths of a second of its work."""
BUSY_BODY = (
    b'{"detail":"too many requests wait: try again","error":"too many requests wait: try again"}'
)
BUSY = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BUSY_BODY), BUSY_BODY)
)
"""In every protocol's form at once: which it is, nobody has looked."""
LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r\n", re.IGNORECASE)


def is_whole(data: bytes) -> bool:
    """Whether `data` is exactly one POST with its body."""
    head, end, body = data.partition(b"\r\n\r\n")
    length = LENGTH.search(head + b"\r\n") if end and head.startswith(b"POST ") else None
    return length is not None and len(body) == int(length[1])


class BoundedConnection(HttpToolsProtocol):
    """Refuses what never becomes a request, in our form: no route, so no protocol, is known yet."""

    _in_head, _head = True, 0
    _late: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if len(self.tasks) >= MOST_REQUESTS and self._between_requests() and is_whole(data):
            # Before anything is parsed or begun: what is refused must cost next to nothing.
            OVERLOADED.inc()
            self.transport.write(BUSY)
            return
        super().data_received(data)
        if not self._in_head:
            if self._late is not None:
                self._rest()
            return
        self._head += len(data)
        if self._head > HEAD_BYTES:
            self._refuse(431, f"headers: over {HEAD_BYTES} bytes")
        elif self._late is None:
            self._wait()

    def _between_requests(self) -> bool:
        if self.cycle is None:
            return not self._head
        return self.cycle.response_complete and not self._in_head

    def on_message_begin(self) -> None:
        self._in_head, self._head = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.scope["state"][WHOLE] = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
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
        if self.transport.is_closing():
            return
        body = to_json({"detail": text})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

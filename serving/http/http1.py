"""HTTP/1.1 by uvicorn's fast parser, with two rules that it lacks.

A request has to arrive within a minute. A client that sends a part of one, and then nothing, would
otherwise hold a connection for ever.

A JDK's HttpClient and `curl --http2` offer HTTP/2 with each request (`Upgrade: h2c`). A server may
ignore the offer (RFC 9110, 7.8). httptools ends there instead: the body is lost, and so is the
connection. h11, uvicorn's other parser, ignores it, but is much slower.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OFFER = b"upgrade"
REQUEST_SECONDS = 60.0
"""Time for a request to arrive, from its first byte, or from the beginning of its connection."""
TOO_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)


class Http1Protocol(HttpToolsProtocol):
    """A connection that waits for a request for a minute, and reads one with an offer without it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_request()

    @property
    def has_offer(self) -> bool:
        """Whether the head that was read offers another protocol."""
        return self.parser.should_upgrade() and OFFER in dict(self.headers)

    def on_headers_complete(self) -> None:
        if not self.has_offer:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.has_offer:
            self._stop_waiting()
            super().on_message_complete()

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._limit = self.loop.call_later(REQUEST_SECONDS, self._end)

    def _stop_waiting(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _end(self) -> None:
        """Close the connection; the answer says why, unless another one has begun."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(TOO_LATE)
        self.transport.close()

    def read_without_offer(self, rest: bytes) -> None:
        """Read the request again; rest: bytes after its head."""
        method = self.parser.get_method()
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [
            b"%s: %s" % (name, value) for name, value in self.headers if name != OFFER
        ]
        self.parser = _Parser(self)
        self.parser.feed_data(b"\r\n".join([*lines, b"", rest]))


class _Parser(httptools.HttpRequestParser):
    def __init__(self, protocol: Http1Protocol) -> None:
        super().__init__(protocol)
        # As uvicorn has it: a request behind the first one is answered, too.
        self.set_dangerous_leniencies(lenient_data_after_close=True)
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._protocol.has_offer:  # the method CONNECT
                raise
            self._protocol.read_without_offer(data[upgrade.args[0] :])

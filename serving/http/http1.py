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
        self._waits_since: float | None = None
        self._next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._look_after(REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._waits_since = self.loop.time()

    @property
    def has_offer(self) -> bool:
        """Whether the head that was read offers another protocol."""
        return self.parser.should_upgrade() and OFFER in dict(self.headers)

    def on_headers_complete(self) -> None:
        if not self.has_offer:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.has_offer:
            self._waits_since = None
            super().on_message_complete()

    def _look_after(self, seconds: float) -> None:
        # One timer for a connection: one for each request would take a twentieth of its time.
        self._next_look = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Close the connection if a request is late; else look again when one can be."""
        now = self.loop.time()
        begun = now if self._waits_since is None else self._waits_since
        seconds_left = begun + REQUEST_SECONDS - now
        if seconds_left > 0:
            self._look_after(seconds_left)
        else:
            self._end()

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

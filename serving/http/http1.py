"""HTTP/1.1 by uvicorn's fast parser, where a client offers another protocol.

A JDK's HttpClient and `curl --http2` offer HTTP/2 with each request (`Upgrade: h2c`). A server may
ignore the offer (RFC 9110, 7.8). httptools ends there instead: the body is lost, and so is the
connection. h11, uvicorn's other parser, ignores it, but is much slower.
"""

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OFFER = b"upgrade"


class Http1Protocol(HttpToolsProtocol):
    """A connection that reads a request with an offer once more, without the offer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)

    @property
    def has_offer(self) -> bool:
        """Whether the head that was read offers another protocol."""
        return self.parser.should_upgrade() and OFFER in dict(self.headers)

    def on_headers_complete(self) -> None:
        if not self.has_offer:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.has_offer:
            super().on_message_complete()

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

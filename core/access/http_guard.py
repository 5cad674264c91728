"""What each HTTP server of Gyre refuses before it reads a request: other names, and other sites.

A page of another site must neither write to a server of this machine nor read it under a name of its
own (DNS rebinding). A browser says where a page is from: `Origin` and `Sec-Fetch-Site`. A name that
is an IP address cannot be rebound, so it is answered.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from core.settings import Settings

READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
OWN_SITES = frozenset({b"same-origin", b"none"})
"""Values of `Sec-Fetch-Site` of a page of the same server, and of an address that a person typed."""
PAGE_HEADERS = frozenset({b"origin", b"sec-fetch-site"})
"""A browser sends one of these with each request that writes."""
LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
STANDARD_PORTS = {"http": 80, "https": 443}
MOST_KNOWN_HOSTS = 256
BAD_REQUEST = 400
FORBIDDEN = 403
Headers = Iterable[tuple[bytes, bytes]]
# Types of ASGI.
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    text: str


class HttpGuard:
    """The rules of one installation, for all of its servers."""

    def __init__(self, settings: Settings) -> None:
        links = [*settings.links.values()]
        addresses = [
            *links,
            settings.mlflow_address,
            settings.airflow_address,
            settings.console_address,
            *settings.serving_addresses,
        ]
        hosts = [str(urlsplit(address).hostname) for address in addresses]
        self._names = LOOPBACK_NAMES.union(hosts, settings.allowed_hosts)
        self._origins = {_origin(link) for link in links}
        self._known_hosts: set[bytes] = set()

    def refusal(
        self, method: str, http_version: str, headers: Headers
    ) -> Refusal | None:
        """Return why a request is refused; None: it is not.

        Args:
            method: The method, in capitals. An opening WebSocket counts as a write: its method is
                "WEBSOCKET".
            http_version: Such as "1.1".
            headers: All headers in their order, with names in small letters.

        """
        hosts = []
        is_of_page = False
        for name, value in headers:
            if name == b"host":
                hosts.append(value)
            elif name in PAGE_HEADERS:
                is_of_page = True
        if len(hosts) > 1:
            return Refusal(BAD_REQUEST, f"expected one Host header, found {len(hosts)}")
        if not hosts and http_version not in {"1.0", "2", "3"}:
            return Refusal(BAD_REQUEST, "expected a Host header, found none")
        host = hosts[0] if hosts else b""
        if hosts and not self._is_own(host):
            name_text = host.decode("latin-1")
            remedy = "add the name to GYRE_ALLOWED_HOSTS if it is one of this server"
            return Refusal(
                FORBIDDEN, f"Host: {name_text!r} is no name of Gyre; {remedy}"
            )
        if is_of_page and method not in READS:
            return self._foreign_site(host.decode("latin-1"), headers)
        return None

    def _is_own(self, host: bytes) -> bool:
        if host in self._known_hosts:
            return True
        name = _name_of(host.decode("latin-1"))
        is_own = _is_address(name) or name in self._names
        if is_own and len(self._known_hosts) < MOST_KNOWN_HOSTS:
            self._known_hosts.add(host)
        return is_own

    def _foreign_site(self, host: str, headers: Headers) -> Refusal | None:
        """Return a refusal if a page of another site sends the request."""
        for name, value in headers:
            is_foreign = (name == b"sec-fetch-site" and value not in OWN_SITES) or (
                name == b"origin" and not self._is_own_origin(value, host)
            )
            if is_foreign:
                header = name.decode().title()
                text = f"{header}: {value.decode('latin-1')!r} is another site"
                return Refusal(FORBIDDEN, f"{text}, which may not write")
        return None

    def _is_own_origin(self, value: bytes, host: str) -> bool:
        text = value.decode("latin-1")
        origin = _origin(text)
        scheme = text.partition("://")[0].lower()
        return origin in self._origins or (
            scheme in STANDARD_PORTS and origin == _origin(f"{scheme}://{host}")
        )


class GuardMiddleware:
    """An ASGI application behind the rules."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._guard = HttpGuard(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        method = scope.get("method", "WEBSOCKET")
        refusal = self._guard.refusal(method, scope["http_version"], scope["headers"])
        if refusal is None:
            await self.app(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send_refusal(send, refusal)


async def send_refusal(send: Send, refusal: Refusal) -> None:
    """Answer with a refusal, as JSON."""
    body = json.dumps({"detail": refusal.text}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),  # the body of the request is not read
    ]
    start = {"type": "http.response.start", "status": refusal.status}
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name_of(host: str) -> str:
    """Return the name or the address in a Host header, without its port; "" of a wrong one."""
    try:
        url = urlsplit(f"//{host}")
        _ = url.port  # raises ValueError where it is no number
    except ValueError:
        return ""
    has_more = url.username is not None or url.path or url.query or url.fragment
    return "" if has_more else (url.hostname or "").rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _origin(address: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of an address; None where it has none."""
    try:
        url = urlsplit(address)
        port = url.port or STANDARD_PORTS.get(url.scheme)
    except ValueError:
        return None
    host = (url.hostname or "").rstrip(".")
    return (url.scheme, host, port) if host else None

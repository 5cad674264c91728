"""What the keeper answers: feedback, events, metrics, the status page and its reports."""

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import edge, read_body
from serving.errors import KeeperSilentError
from stack.settings import Settings
from stack.sockets import keeper_socket

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 10_000_000
SECONDS = 30.0
PATHS = {
    "/": "GET", "/metrics": "GET", "/feedback": "POST", "/events/{name:path}": "POST",
    "/data-docs/{page:path}": "GET", "/status/{name}": "GET",
}  # fmt: skip
MOST_INSIDE = 64
"""That wait for the keeper at once: predictions need the worker's places."""
SENT = (b"content-type", b"accept", b"host")
KEPT = ("content-type", "retry-after", "allow", "connection", "location")
logger = logging.getLogger(__name__)


class Forward:
    def __init__(self, settings: Settings) -> None:
        self._address = str(keeper_socket(settings))
        self._opened: httpx.AsyncClient | None = None
        self._inside = 0

    async def __call__(self, request: Request) -> Response:
        if self._inside >= MOST_INSIDE:
            raise KeeperSilentError("too many requests wait for the keeper")
        httpx = await _httpx()
        scope = request.scope
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        # As it came: decoded and encoded again, a path may become another one, or none.
        path = httpx.URL(scheme="http", host="keeper", raw_path=scope["raw_path"] + query)
        self._inside += 1
        try:
            body = await read_body(request, MAX_BYTES)
            sent = [(n, v) for n, v in scope["headers"] if n in SENT]
            client = await self._client()
            found = await client.request(request.method, path, content=body, headers=sent)
        except httpx.TransportError as exc:
            raise KeeperSilentError(f"the keeper does not answer: {exc}") from exc
        finally:
            self._inside -= 1
        kept = {name: found.headers[name] for name in KEPT if name in found.headers}
        return Response(found.content, found.status_code, kept)

    async def _client(self) -> "httpx.AsyncClient":
        httpx = await _httpx()
        if self._opened is None:
            self._opened = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=self._address, verify=False),
                base_url="http://keeper", timeout=SECONDS, trust_env=False,
            )  # fmt: skip
        return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.aclose()


async def _httpx() -> Any:
    """A worker that only predicts does without; another imports it beside its answers."""
    return await asyncio.to_thread(import_module, "httpx")


def add_forwarded(app: FastAPI, forward: Forward) -> None:
    """Add the keeper's routes."""
    for path, method in PATHS.items():
        work = edge("", path.partition("{")[0], forward)
        app.router.add_route(path, work, [method], include_in_schema=False)

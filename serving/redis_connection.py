"""One connection to Redis: commands out, replies in the order of the commands, or none at all.

RESP is written by hand and parsed by hiredis. https://redis.io/docs/latest/develop/reference/protocol-spec
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import hiredis

from stack.errors import FeaturesUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

OPENING_SECONDS = 0.5
GRACE_SECONDS = 0.002
"""The loop may have been held up itself while the answer lay there: it is looked for once more."""


def command(*words: bytes) -> bytes:
    """Return a command as Redis reads it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


class _Waiting:
    __slots__ = ("count", "future", "replies", "timer", "token")

    def __init__(
        self,
        count: int,
        token: bytes,
        future: asyncio.Future[list[Any]],
        timer: asyncio.TimerHandle,
    ) -> None:
        self.count, self.token, self.future, self.timer = count, token, future, timer
        self.replies: list[Any] = []


class _Protocol(asyncio.Protocol):
    """Gives each reply to who asked for it. Once anything is wrong, nobody gets any more."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._asked = 0
        self.problem: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from neither

    def ask(self, payload: bytes, count: int, seconds: float) -> asyncio.Future[list[Any]]:
        """Send commands; the future has their `count` replies, or fails within `seconds`.

        A token that Redis is to echo after them shows that they are these commands' replies.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if self._transport is None or self.problem is not None:
            future.set_exception(FeaturesUnavailableError(f"Redis: {self.problem}"))
            return future
        timer = loop.call_later(seconds, self._late, future, seconds)
        self._asked += 1
        token = b"%d" % self._asked
        self._waiting.append(_Waiting(count + 1, token, future, timer))
        self._transport.write(payload + command(b"ECHO", token))
        return future

    def _late(self, future: asyncio.Future[list[Any]], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(GRACE_SECONDS, self._too_late, future, seconds)

    def _too_late(self, future: asyncio.Future[list[Any]], seconds: float) -> None:
        if not future.done():
            self.drop(f"no answer within {seconds * 1000:.0f} ms")

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except (hiredis.HiredisError, ValueError) as exc:
            self.drop(f"{exc}")

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if not self._waiting:
            raise ValueError("an answer to nothing")
        first = self._waiting[0]
        first.replies.append(reply)
        if len(first.replies) == first.count:
            if first.replies.pop() != first.token:
                raise ValueError("answers to something else")
            self._waiting.popleft()
            first.timer.cancel()
            if not first.future.done():
                first.future.set_result(first.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(f"connection lost{f': {exc}' if exc else ''}")

    def drop(self, problem: str) -> None:
        """Fail all that wait; what still arrives is nobody's."""
        self.problem = self.problem or problem
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.timer.cancel()
            if not waiting.future.done():
                waiting.future.set_exception(FeaturesUnavailableError(f"Redis: {self.problem}"))


class RedisConnection:
    """Opens when first asked and again after a failure. For one event loop."""

    def __init__(self, address: str) -> None:
        """address: redis:// or rediss:// with user, password, host, port, database."""
        self._url = urlsplit(address)
        self._protocol: _Protocol | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def ask(self, payload: bytes, count: int, seconds: float) -> list[Any]:
        """Send `count` commands and return their replies.

        Raises:
            FeaturesUnavailableError: Redis cannot be reached, refuses, breaks off or is too late;
                other reads under way end the same, and the connection with them.

        """
        protocol = self._protocol
        if protocol is None or protocol.problem is not None:
            protocol = await self._open(seconds)
        return await protocol.ask(payload, count, seconds)

    async def open(self) -> None:
        """Open unless it is open already; takes 0.5 s at most."""
        await self._open(OPENING_SECONDS)

    async def _open(self, seconds: float) -> _Protocol:
        if self._closed:
            raise FeaturesUnavailableError("Redis: closed")
        try:
            async with asyncio.timeout(seconds), self._opening:
                if self._protocol is None or self._protocol.problem is not None:
                    self._protocol = await self._connect(seconds)
        except (OSError, TimeoutError) as exc:  # an SSLError is an OSError
            why = f"{exc}" or "no connection in time"
            raise FeaturesUnavailableError(f"Redis: {why}") from exc
        return self._protocol

    async def _connect(self, seconds: float) -> _Protocol:
        url, loop = self._url, asyncio.get_running_loop()
        secure = ssl.create_default_context() if url.scheme == "rediss" else None
        _, protocol = await loop.create_connection(
            _Protocol, url.hostname or "localhost", url.port or 6379, ssl=secure
        )
        hello = list(_introduction(url.username, url.password, url.path))
        try:
            if hello:
                await protocol.ask(b"".join(hello), len(hello), seconds)
        except BaseException:
            protocol.drop("not opened")
            raise
        return protocol

    async def close(self, seconds: float) -> None:
        """Let what is under way end, at most for `seconds`; nothing is sent any more."""
        self._closed = True
        if self._protocol is not None:
            with suppress(FeaturesUnavailableError):  # after all that was asked before it
                await self._protocol.ask(command(b"PING"), 1, seconds)
            self._protocol.drop("closed")


def _introduction(user: str | None, password: str | None, path: str) -> Sequence[bytes]:
    found = []
    if password:
        who = (unquote(user).encode(),) if user else ()
        found.append(command(b"AUTH", *who, unquote(password).encode()))
    if (database := path.strip("/") or "0") != "0":
        found.append(command(b"SELECT", database.encode()))
    return found

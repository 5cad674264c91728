"""One connection to Redis: commands out, replies in the order of the commands, or none at all.

RESP is written by hand and parsed by hiredis. https://redis.io/docs/latest/develop/reference/protocol-spec
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl
import time
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
LOOK_MS, FAR_SECONDS = 1, 1.0
"""A store nearby answers before the loop has gone round: it is waited for on the spot. Where it did
not come in this time, nobody waits so for the next second.
"""
LOOK_COMMANDS = 200
"""More than these take Redis longer than that."""
RECEIVE = 65_536


def command(*words: bytes) -> bytes:
    """Return a command as Redis reads it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


class _Waiting:
    __slots__ = ("count", "future", "replies", "timer", "token")

    def __init__(self, count: int, token: bytes, future: asyncio.Future[list[Any]]) -> None:
        self.count, self.token, self.future = count, token, future
        self.timer: asyncio.TimerHandle | None = None
        self.replies: list[Any] = []

    def rest(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class _Protocol(asyncio.Protocol):
    """Gives each reply to who asked for it. Once anything is wrong, nobody gets any more."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._asked = 0
        self._fd: int | None = None
        """To read at once; None: what comes is encrypted."""
        self._poll, self._look_from = select.poll(), 0.0
        self.problem: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from neither
        if transport.get_extra_info("ssl_object") is None:
            self._fd = transport.get_extra_info("socket").fileno()
            self._poll.register(self._fd, select.POLLIN)

    def ask(self, payload: bytes, count: int, seconds: float) -> asyncio.Future[list[Any]]:
        """Send commands; the future has their `count` replies, or fails within `seconds`.

        A token that Redis is to echo after them shows that they are these commands' replies.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if self._transport is None or self.problem is not None or self._transport.is_closing():
            # Closing: the number of its file may be another connection's by now.
            problem = self.problem or "connection lost"
            future.set_exception(FeaturesUnavailableError(f"Redis: {problem}"))
            return future
        self._asked += 1
        token = b"%d" % self._asked
        waiting = _Waiting(count + 1, token, future)
        self._waiting.append(waiting)
        self._send(payload + command(b"ECHO", token), near=count <= LOOK_COMMANDS)
        if not future.done():
            waiting.timer = loop.call_later(seconds, self._late, future, seconds)
        return future

    def _send(self, data: bytes, *, near: bool) -> None:
        """Send, and take the answer if it comes at once: the loop need not go round for it."""
        transport, fd = cast("asyncio.Transport", self._transport), self._fd
        now = time.monotonic()
        if fd is None or not near or now < self._look_from or transport.get_write_buffer_size():
            transport.write(data)
            return
        try:
            rest = data[os.write(fd, data) :]
        except BlockingIOError:
            rest = data
        except OSError as exc:
            self.drop(f"{exc}")
            return
        if rest:
            transport.write(rest)
        elif self._poll.poll(LOOK_MS):
            with suppress(OSError):  # the transport finds the same, and ends
                self.data_received(os.read(fd, RECEIVE))
        else:
            self._look_from = now + FAR_SECONDS

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
            first.rest()
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
            waiting.rest()
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
            await asyncio.sleep(0)  # in a task from here on, which a timeout needs
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

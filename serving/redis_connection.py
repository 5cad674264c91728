"""A connection to Redis that sends one batch of commands at a time and waits for their replies.

redis-py's own connection reads through asyncio's streams, which copy each reply and wake the reader
twice. redis-py still reads the address.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import ConnectionPool, SSLConnection

Command = tuple[Any, ...]


class RedisConnection(asyncio.Protocol):
    """After an error it answers nothing more: a late reply is never taken for another batch's."""

    def __init__(self) -> None:
        self._parser = hiredis.Reader()
        self._replies: list[Any] = []
        self._reply_count = 0
        self._answered: asyncio.Future[list[Any]] | None = None
        self._transport: Any = None
        self._problem: Exception | None = None

    async def ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """Send commands, and return their replies in this order.

        Args:
            commands: At least one.
            seconds: How long to wait for all replies.

        Raises:
            TimeoutError: The replies take longer.
            OSError: The connection has ended.
            HiredisError: A reply is an error, or is not of Redis.

        """
        if self._problem is not None:
            raise self._problem
        loop = asyncio.get_running_loop()
        self._replies = []
        self._reply_count = len(commands)
        self._answered = loop.create_future()
        packed = [hiredis.pack_command(command) for command in commands]
        self._transport.write(b"".join(packed))
        deadline = loop.call_later(seconds, self._fail, TimeoutError())
        try:
            replies = await self._answered
        finally:
            deadline.cancel()
            self._answered = None
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
        return replies

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            reply = self._parser.gets()
            while reply is not False:
                self._replies.append(reply)
                reply = self._parser.gets()
        except hiredis.HiredisError as exc:
            self._fail(exc)
            return
        if self._answered is None or len(self._replies) > self._reply_count:
            self._fail(ConnectionError("sent a reply without a request"))
        elif len(self._replies) == self._reply_count and not self._answered.done():
            self._answered.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("closed the connection"))

    def _fail(self, exc: Exception) -> None:
        self._problem = exc
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc)


async def open_connection(address: str, seconds: float) -> RedisConnection:
    """Connect, with the user, the database and the certificates that an address names.

    Args:
        address: Such as `rediss://USER:PASSWORD@HOST:PORT/0?ssl_ca_certs=FILE`.
        seconds: How long that may take.

    Raises:
        TimeoutError: It takes longer.
        OSError: Nothing answers there.
        HiredisError: Redis refuses the user or the database.

    """
    pool: Any = ConnectionPool.from_url(address)
    target = pool.make_connection()
    certificates = None
    if isinstance(target, SSLConnection):
        certificates = target.ssl_context.get()
    greetings: list[Command] = []
    if target.password:
        user = (target.username,) if target.username else ()
        greetings.append(("AUTH", *user, target.password))
    if target.db:
        greetings.append(("SELECT", str(target.db)))
    greetings.append(("PING",))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        _, connection = await loop.create_connection(
            RedisConnection, target.host, target.port, ssl=certificates
        )
    try:
        await connection.ask(greetings, seconds)
    except BaseException:
        connection.close()
        raise
    return connection

"""Requests over raw sockets, and how long each took: one thread, one core, nothing but `epoll`.

    python -m benchmarks.load

prints what it can send itself, to uvloop answering a constant without looking. With no
rate the loop is closed: a connection asks again as soon as it is answered. With a rate it is open:
requests are due at random moments (Poisson) whatever the server does, and a request's time begins
when it was due, so that one slow answer is not counted once where it made many wait; the core is
never idle then, for `epoll` sleeps no shorter than a millisecond.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import re
import select
import socket
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OK, NO_ANSWER = 200, 0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RECEIVE = 65_536
PATIENCE = 10.0
"""Seconds after the end that answers under way are waited for."""
CONSTANT = b"HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n" + b'{"probability":0.5}'


@dataclass
class Load:
    """What came back. A request without an answer has status 0 and the time until it was lost."""

    seconds: float = 0.0
    busy: float = 0.0
    """Share of its core that the generator itself used; of a closed loop, what it had left."""
    cpu: float = 0.0
    """Seconds of processor time that the server used meanwhile, where they were counted."""
    unsent: int = 0
    """Requests that were due when no connection was free, and the end came."""
    status: array[int] = field(default_factory=lambda: array("H"))
    took: array[float] = field(default_factory=lambda: array("d"))

    @property
    def statuses(self) -> Counter[int]:
        return Counter(self.status)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.status.count(OK) / self.seconds

    @property
    def failed(self) -> int:
        return len(self.status) - self.status.count(OK)

    def ms(self, percent: float, *, good: bool = True) -> float:
        """Time that `percent` of the answers took at most; NaN if there are none."""
        found = np.frombuffer(self.took)[(np.frombuffer(self.status, np.uint16) == OK) == good]
        return float(np.percentile(found, percent)) * 1000 if len(found) else float("nan")


@dataclass(slots=True)
class Connection:
    socket: socket.socket
    due: float = 0.0
    """When what it waits for was to be sent."""
    head: bytes = b""
    """What has come of an answer that is not complete."""


def post(path: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def load(
    port: int, requests: Sequence[bytes], connections: int, *, seconds: float = 3600.0,
    count: int | None = None, rate: float | None = None,
    seen: Callable[[int, bytes], None] | None = None,
) -> Load:  # fmt: skip
    """Send `requests` in turn from `connections`, for so long or so many of them.

    seen: is told of each answer its status, and the whole of it.
    """
    made = Generator(port, requests, connections, seen)
    gc.disable()
    try:
        return made.run(due(rate, seconds) if rate else None, seconds, count)
    finally:
        gc.enable()
        made.close()


def due(rate: float, seconds: float) -> deque[float]:
    """Random moments, `rate` of them a second, in seconds from the start."""
    rng = np.random.default_rng(1)
    gaps = rng.exponential(1 / rate, int(rate * seconds * 1.1) + 100).cumsum()
    return deque(gaps[gaps < seconds].tolist())


class Generator:
    def __init__(
        self, port: int, requests: Sequence[bytes], connections: int,
        seen: Callable[[int, bytes], None] | None,
    ) -> None:  # fmt: skip
        self._port, self._requests, self._seen = port, requests, seen
        self._epoll, self._made, self.found = select.epoll(), dict[int, Connection](), Load()
        self._next = random.Random(1).randrange(len(requests))  # noqa: S311  (no secret)
        self._free = deque(self._connect() for _ in range(connections))

    def _connect(self) -> Connection:
        made = socket.create_connection(("127.0.0.1", self._port), 10)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)  # noqa: FBT003
        self._epoll.register(made, select.EPOLLIN)
        self._made[made.fileno()] = Connection(made)
        return self._made[made.fileno()]

    def close(self) -> None:
        for connection in self._made.values():
            connection.socket.close()
        self._epoll.close()

    def run(self, dues: deque[float] | None, seconds: float, count: int | None) -> Load:
        """dues: the moments of an open loop, from the start; None: as soon as one is free."""
        clock, free, made = time.perf_counter, self._free, self._made
        begin, used, left = clock(), time.process_time(), count or 1 << 62
        end = begin + seconds
        while True:
            now = clock()
            sending = now < end and left > 0
            while sending and free and left and (dues is None or (dues and begin + dues[0] <= now)):
                self._send(free.popleft(), now if dues is None else begin + dues.popleft())
                left -= 1
            if now > end + PATIENCE or (not sending and len(free) == len(made)):
                break
            for fd, _ in self._epoll.poll(0 if dues and sending else 0.1):
                self._receive(made[fd], clock())
        self._lost(clock())
        found = self.found
        found.seconds = min(clock(), end) - begin
        found.busy = (time.process_time() - used) / (clock() - begin)
        found.unsent = len(dues or ())
        return found

    def _send(self, connection: Connection, due: float) -> None:
        connection.due = due
        self._next = (self._next + 1) % len(self._requests)
        try:
            connection.socket.sendall(self._requests[self._next])
        except OSError:
            self._again(connection, time.perf_counter())

    def _receive(self, connection: Connection, now: float) -> None:
        try:
            data = connection.socket.recv(RECEIVE)
        except OSError:
            data = b""
        if not data:
            self._again(connection, now)
            return
        data = connection.head + data if connection.head else data
        head = data.find(b"\r\n\r\n") + 4
        length = LENGTH.search(data, 0, head) if head > 3 else None
        if length is None or len(data) < head + int(length[1]):
            connection.head = data
            return
        connection.head = b""
        self._answered(connection, int(data[9:12]), now)
        if self._seen is not None:
            self._seen(int(data[9:12]), data)

    def _answered(self, connection: Connection, status: int, now: float) -> None:
        self.found.status.append(status)
        self.found.took.append(now - connection.due)
        connection.due = 0.0
        self._free.append(connection)

    def _again(self, connection: Connection, now: float) -> None:
        """It was closed: what it waited for is lost; another takes its place."""
        if connection.due:
            self.found.status.append(NO_ANSWER)
            self.found.took.append(now - connection.due)
        else:
            self._free.remove(connection)
        del self._made[connection.socket.fileno()]
        connection.socket.close()
        self._free.append(self._connect())

    def _lost(self, now: float) -> None:
        for connection in self._made.values():
            if connection.due:
                self.found.status.append(NO_ANSWER)
                self.found.took.append(now - connection.due)


class Answering(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        self._transport.write(CONSTANT)  # type: ignore[attr-defined]


def answer(ports: multiprocessing.Queue[int]) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


def main() -> None:
    """What the generator does by itself, server on the first core, generator on the last."""
    spawn = multiprocessing.get_context("spawn")
    ports = spawn.Queue()
    server = spawn.Process(target=answer, args=(ports,), daemon=True)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    server.start()
    os.sched_setaffinity(0, {cores[-1]})
    port, asking = ports.get(timeout=30), [post("/predict", b'{"customer_id": 4}')]
    for connections in (1, 16):
        found = load(port, asking, connections, seconds=2)
        print(f"load generator alone, {connections} connections: {found.rate:,.0f} requests/s, "
              f"p99 {found.ms(99):.2f} ms, {found.busy:.0%} of its core")  # fmt: skip
    server.kill()
    os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()

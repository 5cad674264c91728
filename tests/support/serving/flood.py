"""Requests from many connections, and how long each took: one process, one core.

Without a rate the loop is closed: a connection asks again as soon as it is answered. With a rate it
is open: requests are due at random times (Poisson) whatever the server does, and the time of a
request begins when it was due, so that a slow answer counts for all that wait behind it. The core
is never idle then, for timers are no finer than a millisecond.

    python tests/support/serving/flood.py PORT CONNECTIONS SECONDS [PATH]

asks PATH (/predict) for customer 4 in a closed loop, and prints what came back as JSON.
"""

import asyncio
import gc
import itertools
import json
import re
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field

import numpy as np
import uvloop

OK = 200
REFUSED = 429
NO_ANSWER = 0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
REFUSED_SECONDS = 1.0
"""How long who is refused waits before it asks again; the server says so in Retry-After."""
PATIENCE = 60.0
"""Seconds after the end for which answers under way are waited for."""


@dataclass
class Load:
    """Status and seconds of each request: 0 where the connection was closed instead of an answer.

    A request that is under way until the patience ends is left out.
    """

    seconds: float
    statuses: list[int] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    busy: float = 0.0
    """Share of its core that the generator used."""

    @property
    def rate(self):
        """Good answers a second."""
        return self.statuses.count(OK) / self.seconds

    @property
    def failed(self):
        return len(self.statuses) - self.statuses.count(OK)

    def ms(self, percent):
        """Time within which `percent` of the answers came."""
        return float(np.percentile(self.durations, percent)) * 1000

    def durations_of(self, status):
        pairs = zip(self.statuses, self.durations, strict=True)
        return [duration for answered, duration in pairs if answered == status]


def flood(port, connections, seconds):
    """Run this program: a process that has imported all that tests do would measure itself."""
    command = [sys.executable, __file__, str(port), str(connections), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return Load(**json.loads(done.stdout))


def post(path, body):
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    )
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def load(port, requests, connections, seconds, rate=0.0):
    """Send `requests` in turn for so long, as fast as they are answered or at `rate` a second."""
    gc.disable()  # a collection among so many connections would be measured as the server's
    try:
        return uvloop.run(Generator(requests, seconds, rate).run(port, connections))
    finally:
        gc.enable()


class Generator:
    def __init__(self, requests, seconds, rate):
        self.requests = itertools.cycle(requests)
        self.load = Load(seconds)
        self.rate = rate
        self.free = deque()
        self.over = False

    async def run(self, port, connections):
        loop = asyncio.get_running_loop()
        opened = [
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", port)
            for _ in range(connections)
        ]
        begin = time.perf_counter()
        used_before = time.process_time()
        if self.rate:
            await self._open_loop(begin)
        else:
            while self.free:
                self.free.popleft().send(time.perf_counter())
            await asyncio.sleep(self.load.seconds)
        used = time.process_time() - used_before
        self.load.busy = used / (time.perf_counter() - begin)
        self.over = True
        until = time.perf_counter() + PATIENCE
        connections = [connection for _, connection in opened]
        while any(connection.due for connection in connections):
            await asyncio.sleep(0.01)  # an event would cost each answer
            if time.perf_counter() > until:
                break
        for transport, connection in opened:
            connection.due = 0.0
            transport.abort()
        await asyncio.sleep(0)
        return self.load

    async def _open_loop(self, begin):
        seconds = self.load.seconds
        count = int(self.rate * seconds * 1.1) + 100
        gaps = np.random.default_rng(1).exponential(1 / self.rate, count)
        for due in (begin + gaps.cumsum()).tolist():
            while time.perf_counter() < due or not self.free:
                if time.perf_counter() > begin + seconds:
                    return
                await asyncio.sleep(0)
            self.free.popleft().send(due)


class Connection(asyncio.Protocol):
    """A request at a time; `due` is when the one under way was to be sent, 0 if there is none."""

    def __init__(self, generator):
        self._generator = generator
        self._received = b""
        self.due = 0.0

    def connection_made(self, transport):
        self._transport = transport
        self._generator.free.append(self)

    def send(self, due):
        self.due = due
        self._transport.write(next(self._generator.requests))

    def data_received(self, data):
        self._received += data
        head = self._received.find(b"\r\n\r\n") + 4
        length = LENGTH.search(self._received, 0, head)
        if head <= 3 or length is None or len(self._received) < head + int(length[1]):
            return
        status = int(self._received[9:12])
        self._received = b""
        self._count(status)
        if self._generator.rate:
            self._generator.free.append(self)
        elif status == REFUSED:
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._again)
        else:
            self._again()

    def connection_lost(self, _exc):
        if self.due:
            self._count(NO_ANSWER)

    def _again(self):
        if not self._generator.over:
            self.send(time.perf_counter())

    def _count(self, status):
        self._generator.load.statuses.append(status)
        self._generator.load.durations.append(time.perf_counter() - self.due)
        self.due = 0.0


if __name__ == "__main__":
    requests = [post("".join(sys.argv[4:]) or "/predict", b'{"customer_id": 4}')]
    result = load(int(sys.argv[1]), requests, int(sys.argv[2]), float(sys.argv[3]))
    sys.stdout.write(json.dumps(asdict(result)))

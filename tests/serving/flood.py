"""Requests from many connections without pause, from a process of its own (as in `load.py`)."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections import Counter
from typing import NamedTuple

BODY = json.dumps({"customer_id": 4}).encode()
POST = b"POST /predict HTTP/1.1\r\nhost: gyre\r\ncontent-type: application/json\r\n"
ASK = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


class Flood(NamedTuple):
    """How many answers had each status; how long each refusal took, in seconds."""

    statuses: Counter[int]
    refusals: list[float]


def flood(port: int, connections: int, seconds: float) -> Flood:
    """Ask from `connections` at once; who is refused waits as told."""
    command = [sys.executable, __file__, str(port), str(connections), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    statuses, refusals = json.loads(done.stdout)
    return Flood(Counter({int(status): count for status, count in statuses.items()}), refusals)


async def ask(port: int, connections: int, seconds: float) -> Flood:
    result = Flood(Counter(), [])
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    end = time.monotonic() + seconds

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (began := time.monotonic()) < end:
            writer.write(ASK)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            json.loads(await reader.readexactly(size))
            result.statuses[int(head[9:12])] += 1
            if head.startswith(b"HTTP/1.1 429"):
                result.refusals.append(time.monotonic() - began)
                assert b"retry-after: 1" in head.lower()
                await asyncio.sleep(1)
        writer.close()

    await asyncio.gather(*(client(*each) for each in opened))
    return result


if __name__ == "__main__":
    gc.disable()  # a collection among so many connections would be measured as the server's
    sys.stdout.write(json.dumps(asyncio.run(ask(*map(int, sys.argv[1:3]), float(sys.argv[3])))))

"""More requests than a worker can bear."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

from serving.http_connection import MOST_REQUESTS
from tests.conftest import unused_port

BODY = json.dumps({"customer_id": 4}).encode()
POST = b"POST /predict HTTP/1.1\r\nhost: gyre\r\ncontent-type: application/json\r\n"
ASK = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
BEARABLE, SECONDS, AT_ONCE = 64, 3.0, 0.5


async def load(port: int, connections: int, seconds: float) -> tuple[Counter[int], list[float]]:
    """Statuses of requests without pause, who is refused waiting as told; times of refusals."""
    statuses, refusals = Counter[int](), list[float]()
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    end = time.monotonic() + seconds

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (began := time.monotonic()) < end:
            writer.write(ASK)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            json.loads(await reader.readexactly(size))
            statuses[int(head[9:12])] += 1
            if head.startswith(b"HTTP/1.1 429"):
                refusals.append(time.monotonic() - began)
                assert b"retry-after: 1" in head.lower()
                await asyncio.sleep(1)
        writer.close()

    await asyncio.gather(*(client(*each) for each in opened))
    return statuses, refusals


def test_three_times_what_it_bears_is_answered_or_refused_at_once(rig: Any, served: Any) -> None:
    """11: the best throughput goes on; who is too many is told so, and the next one answered."""
    with rig.serving(serving_port=unused_port()) as (client, _):
        rig.known_to_be_ready(client)
        port = client.base_url.port
        best, _ = asyncio.run(load(port, BEARABLE, SECONDS))
        assert set(best) == {200}
        statuses, refused = asyncio.run(load(port, 3 * MOST_REQUESTS, SECONDS))
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 0.8 * best[200]
        assert sorted(refused)[len(refused) // 2] < AT_ONCE
        assert client.get("/health/ready").status_code == 200
        assert rig.predict(client).json()["features_from"] == "online"
        assert f"gyre_overloaded_total {float(len(refused))}" in client.get("/metrics").text

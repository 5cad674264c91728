"""How fast one worker answers `/predict`, look-up and log included.

    python -m benchmarks.serving [seconds per measurement]

Takes model, feature definitions and Redis's content from the stack at GYRE_HOME (it must be up and
serve a version), and starts its own Redis and its own worker, both pinned to the first core; the
load comes from the last. Beside it runs an empty FastAPI route that validates the same body and
answers a constant. Rounds are interleaved, the median of three is printed.

What is unfair: Redis shares the worker's core, the empty route has none; the empty route's body is
validated by FastAPI's own machinery, ours by the same pydantic model on the raw bytes; the worker
polls an MLflow that is down (it serves the verified local copy); load, worker and Redis share one
machine's caches and whatever else runs on it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import uvicorn
from fastapi import FastAPI

from serving.schemas import build_schemas
from stack.settings import PROJECT, load_settings
from stack.spec import load_spec

ROUNDS, CONNECTIONS = 3, (1, 16)
CORES = sorted(os.sched_getaffinity(0))
BIN = Path(sys.executable).parent
HEAD = "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {n}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def empty_app(port: int) -> None:
    spec = load_spec(load_settings().default_model)
    body, app = build_schemas(spec).request, FastAPI()

    async def empty(row: body) -> dict[str, float]:  # type: ignore[valid-type]  # noqa: ARG001
        return {"probability": 0.5}

    empty.__annotations__["row"] = body
    app.post("/predict")(empty)
    uvicorn.run(app, port=port, http="httptools", loop="uvloop", access_log=False)


def start(opened: ExitStack, command: list[str], log: Path, **environment: str) -> None:
    """Start `command` on the first core; killed when `opened` closes."""
    os.sched_setaffinity(0, {CORES[0]})
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, env=os.environ | environment, cwd=PROJECT, stdout=out, stderr=out
        )
    os.sched_setaffinity(0, {CORES[-1]})
    opened.callback(process.wait, 10)
    opened.callback(process.kill)


def start_ours(opened: ExitStack, folder: Path) -> int:
    """Copy what the stack serves, then Redis and a worker of our own. Return the worker's port."""
    settings, home = load_settings(), folder / "home"
    redis, port, nothing = free_port(), free_port(), free_port()
    for part in ("serving/models", "feast"):
        shutil.copytree(settings.home / part, home / part)
    dump = [str(BIN / "redis-cli"), "-u", settings.redis_address, "--rdb", str(folder / "dump.rdb")]
    subprocess.run(dump, check=True, capture_output=True)
    server = [str(BIN / "redis-server"), "--port", str(redis), "--dir", str(folder), "--save", ""]
    start(opened, server, folder / "redis.log")
    here = {"GYRE_HOME": str(home), "GYRE_REDIS_URL": f"redis://127.0.0.1:{redis}/0"}
    here |= {"GYRE_MLFLOW_URL": f"http://127.0.0.1:{nothing}", "GYRE_SERVING_PORT": str(port)}
    start(opened, [sys.executable, "-m", "serving"], folder / "serving.log", **here)
    wait(f"http://127.0.0.1:{port}/health/ready")
    return port


def wait(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urlopen(address, timeout=2).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def request(key: int) -> bytes:
    body = json.dumps({"customer_id": key}).encode()
    return HEAD.format(path="/predict", n=len(body)).encode() + b"\r\n\r\n" + body


async def one_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes
) -> bool:
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return head[9:12] == b"200"


async def known_keys(port: int) -> list[int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    keys = [key for key in range(1, 1000) if await one_request(reader, writer, request(key))]
    writer.close()
    return keys


async def load(
    port: int, keys: list[int], connections: int, seconds: float
) -> tuple[list[float], int]:
    """Closed loop; latencies of the good answers in seconds, and how many were not good."""
    requests, times, bad = [request(key) for key in keys], list[float](), 0
    end = time.perf_counter() + seconds

    async def client(number: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        failed, i = 0, number * 37
        while (before := time.perf_counter()) < end:
            good = await one_request(reader, writer, requests[i % len(requests)])
            times.append(time.perf_counter() - before)
            failed, i = failed + (not good), i + 1
        writer.close()
        return failed

    bad = sum(await asyncio.gather(*(client(n) for n in range(connections))))
    return times, bad


def measure(ports: dict[str, int], keys: list[int], seconds: float) -> None:
    found: dict[tuple[str, int], list[tuple[float, float, float, int]]] = {}
    for _ in range(ROUNDS):
        for connections in CONNECTIONS:
            for name, port in ports.items():
                times, bad = asyncio.run(load(port, keys, connections, seconds))
                cut = statistics.quantiles(times, n=100)
                row = (len(times) / seconds, cut[49] * 1000, cut[98] * 1000, bad)
                found.setdefault((name, connections), []).append(row)
    print(f"{'':8}{'connections':>12}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}")
    for (name, connections), rows in found.items():
        rate, p50, p99, _ = (statistics.median(column) for column in zip(*rows, strict=True))
        failed = sum(row[3] for row in rows)
        print(f"{name:8}{connections:12}{rate:9.0f}{p50:9.2f}{p99:9.2f}{failed:8}")


def main(seconds: float) -> None:
    import uvloop  # noqa: PLC0415  (the load's own loop; the servers choose theirs)

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name, ExitStack() as opened:
        folder, empty = Path(name), free_port()
        ours = start_ours(opened, folder)
        command = [sys.executable, "-m", "benchmarks.serving", "--empty", str(empty)]
        start(opened, command, folder / "empty.log")
        wait(f"http://127.0.0.1:{empty}/docs")
        keys = asyncio.run(known_keys(ours))
        print(f"one worker and Redis on core {CORES[0]}, load on core {CORES[-1]}, "
              f"{len(keys)} customers, {seconds:g} s each, median of {ROUNDS}")  # fmt: skip
        measure({"gyre": ours, "empty": empty}, keys, seconds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--empty"]:
        empty_app(int(sys.argv[2]))
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 4.0)

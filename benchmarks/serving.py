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

import uvloop
from fastapi import FastAPI

from serving.schemas import build_schemas
from stack.ready import answers
from stack.settings import PROJECT, load_settings
from stack.spec import load_spec

ROUNDS, CONNECTIONS = 3, (1, 16)
CORES = sorted(os.sched_getaffinity(0))
BIN = Path(sys.executable).parent
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
EMPTY = "-m uvicorn benchmarks.serving:empty_app --factory --http httptools --loop uvloop"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def empty_app() -> FastAPI:
    body, app = build_schemas(load_spec(load_settings().default_model)).request, FastAPI()

    async def empty(row: body) -> dict[str, float]:  # type: ignore[valid-type]  # noqa: ARG001
        return {"probability": 0.5}

    empty.__annotations__["row"] = body
    app.post("/predict")(empty)
    return app


def start(opened: ExitStack, command: list[str], ready: str = "", **environment: str) -> None:
    """Start `command` on the first core, wait for `ready`; killed when `opened` closes."""
    os.sched_setaffinity(0, {CORES[0]})
    process = subprocess.Popen(command, env=os.environ | environment, cwd=PROJECT)
    os.sched_setaffinity(0, {CORES[-1]})
    opened.callback(process.wait, 10)
    opened.callback(process.kill)
    end = time.monotonic() + 60
    while ready and (problem := answers(ready)):
        if time.monotonic() > end:
            raise SystemExit(problem)
        time.sleep(0.2)


def start_ours(opened: ExitStack, folder: Path) -> int:
    """Copy what the stack serves, then Redis and a worker of our own. Return the worker's port."""
    settings, home = load_settings(), folder / "home"
    if not (settings.home / "serving" / "models").is_dir():
        raise SystemExit(f"nothing is served from {settings.home}: make up first")
    redis, port, nothing = free_port(), free_port(), free_port()
    for part in ("serving/models", "feast"):
        shutil.copytree(settings.home / part, home / part)
    shutil.copy(settings.home / "serving" / "announcement.json", home / "serving")
    dump = [str(BIN / "redis-cli"), "-u", settings.redis_address, "--rdb", str(folder / "dump.rdb")]
    subprocess.run(dump, check=True, capture_output=True)
    server = [str(BIN / "redis-server"), "--port", str(redis), "--dir", str(folder), "--save", ""]
    start(opened, [*server, "--loglevel", "warning"])
    here = {"GYRE_HOME": str(home), "GYRE_REDIS_URL": f"redis://127.0.0.1:{redis}/0"}
    here |= {"GYRE_MLFLOW_URL": f"http://127.0.0.1:{nothing}", "GYRE_SERVING_PORT": str(port)}
    ready = f"http://127.0.0.1:{port}/health/ready"
    start(opened, [sys.executable, "-m", "serving"], ready, **here)
    return port


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: int) -> bool:
    body = json.dumps({"customer_id": key}).encode()
    writer.write(HEAD + b"%d\r\n\r\n" % len(body) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
    return head[9:12] == b"200"


async def known_keys(port: int) -> list[int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    keys = [key for key in range(1, 1000) if await ask(reader, writer, key)]
    writer.close()
    return keys


async def load(port: int, keys: list[int], connections: int, seconds: float) -> list[float]:
    """Closed loop: requests per second, median and 99th percentile in ms, how many failed."""
    times, goods, end = list[float](), list[bool](), time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        i = number * 37
        while (before := time.perf_counter()) < end:
            goods.append(await ask(reader, writer, keys[i % len(keys)]))
            times.append(time.perf_counter() - before)
            i += 1
        writer.close()

    await asyncio.gather(*(client(n) for n in range(connections)))
    cut = statistics.quantiles(times, n=100)
    return [len(times) / seconds, cut[49] * 1000, cut[98] * 1000, goods.count(False)]


def measure(ports: dict[str, int], keys: list[int], seconds: float) -> None:
    pairs = [(name, connections) for connections in CONNECTIONS for name in ports]
    rounds = [
        {(name, n): uvloop.run(load(ports[name], keys, n, seconds)) for name, n in pairs}
        for _ in range(ROUNDS)
    ]
    print(f"{'':8}{'connections':>12}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}")
    for name, connections in pairs:
        *columns, bad = zip(*(found[name, connections] for found in rounds), strict=True)
        rate, p50, p99 = (statistics.median(column) for column in columns)
        print(f"{name:8}{connections:12}{rate:9.0f}{p50:9.2f}{p99:9.2f}{sum(bad):8.0f}")


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name, ExitStack() as opened:
        empty, ours = free_port(), start_ours(opened, Path(name))
        command = [sys.executable, *EMPTY.split(), "--port", str(empty), "--log-level", "warning"]
        start(opened, command, f"http://127.0.0.1:{empty}/docs")
        keys = uvloop.run(known_keys(ours))
        cores = f"one worker and Redis on core {CORES[0]}, load on core {CORES[-1]}"
        print(f"{cores}, {len(keys)} customers, {seconds:g} s each, median of {ROUNDS}")
        measure({"gyre": ours, "empty": empty}, keys, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 4.0)

"""The servers that are measured, each on the first core; who measures has the last one.

Ours is an installation of its own: the shipped orders ingested, the shipped model trained, one
worker and a Redis on the first core, its MLflow on the last. Beside it an empty FastAPI route that
validates the same body, and MLServer on the same ONNX file, as fast as it gets here: uvloop,
httptools, no inference pool, metrics or gzip (peers/settings.json), a lean runtime as its manual
shows, no adaptive batching, onnxruntime with one thread that does not spin, as in ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from core.project import PROJECT
from core.settings import load_settings
from mlflow_server.api.registry import Registry
from mlflow_server.model.pyfunc import read_version
from stack.supervisor import members
from tests.conftest import (
    BIN,
    answers,
    feast_apply,
    new_settings,
    running,
    unused_port,
    wait_until,
)
from tests.serving.conftest import SPEC, Rig
from tests.support.serving.flood import post

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from core.spec import ModelSpec

CORES = sorted(os.sched_getaffinity(0))
PEERS = PROJECT / "benchmarks" / "peers"
V2_TYPES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
EMPTY = "uvicorn benchmarks.support.empty:create_app --factory --http httptools --loop uvloop"


@dataclass(frozen=True)
class Server:
    port: int
    requests: Sequence[bytes]
    processes: tuple[subprocess.Popen[bytes], ...]
    """What it consists of, beside what these started."""

    def cpu(self) -> float:
        """Seconds of its core that it has used, Redis included."""
        tops = [psutil.Process(process.pid) for process in self.processes]
        times = [
            each.cpu_times()
            for top in tops
            for each in (top, *top.children(recursive=True))
        ]
        return sum(each.user + each.system for each in times)

    def workers(self) -> list[psutil.Process]:
        """Processes that answer, where it has several: uvicorn's spawned ones."""
        children = psutil.Process(self.processes[-1].pid).children()
        return [
            child for child in children if "spawn_main" in " ".join(child.cmdline())
        ]


@contextmanager
def paused_stack() -> Iterator[None]:
    """Stop this clone's stack, if it is up: its processes wake on the cores that are measured."""
    processes = members(load_settings().home)
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@contextmanager
def on_first_core() -> Iterator[None]:
    os.sched_setaffinity(0, {CORES[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {CORES[-1]})


@contextmanager
def installed() -> Iterator[tuple[ExitStack, Rig, Server]]:
    """Run an installation in a temporary folder, and its worker; yield what closes more, too."""
    with (
        tempfile.TemporaryDirectory(prefix="gyre-bench-") as name,
        ExitStack() as opened,
    ):
        # Other benchmarks follow.
        opened.callback(os.sched_setaffinity, 0, CORES)
        opened.enter_context(paused_stack())
        rig = install(opened, Path(name))
        yield opened, rig, start_ours(opened, rig)


def install(opened: ExitStack, folder: Path) -> Rig:
    """Features of the shipped orders in Redis, and a trained version in production."""
    rig = Rig(new_settings(folder / "home", demo_start=None), folder, opened)
    with on_first_core():
        rig.start_redis()
    feast_apply(rig.settings)
    rig.ingest()
    rig.start_mlflow()
    train(rig, SPEC)
    return rig


def train(rig: Rig, spec: ModelSpec, *, force: bool = False) -> str:
    from training import chain  # noqa: PLC0415  (heavy)

    named = {"key": spec.estimators[0].name, "reason": "bench", "who": "bench"}
    report = chain.train(rig.settings, spec, datetime.now(UTC), force=force, **named)
    assert report.version, report.outcome
    return report.version


def start_ours(opened: ExitStack, rig: Rig) -> Server:
    with on_first_core():
        client, process = opened.enter_context(rig.serving(serving_workers=1))
    rig.known_to_be_ready(client)
    assert rig.predict(client).json()["features_from"] == "online"
    # The customers of the shipped orders are numbered without a gap.
    requests = [
        post("/predict", b'{"customer_id":%d}' % number) for number in range(1, 10_001)
    ]
    return Server(rig.settings.serving_port, requests, (rig.redis, process))


def start(
    opened: ExitStack, command: list[str], log: Path, ready: str, **environment: str
) -> subprocess.Popen[bytes]:
    with on_first_core():
        process = opened.enter_context(running(command, log, **environment))
    wait_until(f"{command}: {log}", lambda: answers(ready), 90)
    return process


def start_empty(opened: ExitStack, rig: Rig, ours: Server) -> Server:
    port = unused_port()
    command = [
        sys.executable,
        "-m",
        *EMPTY.split(),
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    process = start(
        opened, command, rig.folder / "empty.log", f"http://127.0.0.1:{port}/docs"
    )
    return Server(port, ours.requests, (process,))


def mlserver() -> Path:
    """Its command, in an environment of its own, which is made as pinned."""
    home, uv = PROJECT / ".gyre-bench" / "mlserver", str(BIN / "uv")
    python, pins = str(home / "bin" / "python"), str(PEERS / "mlserver.txt")
    venv = [uv, "venv", "--allow-existing", "--python", sys.executable, str(home)]
    for command in (
        venv,
        [uv, "pip", "sync", "--require-hashes", "--python", python, pins],
    ):
        subprocess.run(command, check=True)
    return home / "bin" / "mlserver"


def start_mlserver(opened: ExitStack, rig: Rig) -> Server:
    """MLServer, with the version in production; peers/settings.json says how."""
    registry, port = Registry(rig.settings), unused_port()
    version = registry.version(SPEC.name, registry.production(SPEC.name) or "")
    contract, model = read_version(registry, version)
    model.write(rig.folder)
    environment = {
        "MLSERVER_HTTP_PORT": str(port),
        "MLSERVER_GRPC_PORT": str(unused_port()),
        "MODEL_FILE": str(rig.folder / "model.onnx"),
    }
    command, log = [str(mlserver()), "start", str(PEERS)], rig.folder / "mlserver.log"
    ready = f"http://127.0.0.1:{port}/v2/models/m/ready"
    process = start(opened, command, log, ready, **environment)
    inputs = [
        {
            "name": name,
            "shape": [1, 1],
            "datatype": V2_TYPES[kind],
            "data": [contract.defaults[name]],
        }
        for name, kind in contract.features.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    return Server(port, [post("/v2/models/m/infer", body)], (process,))

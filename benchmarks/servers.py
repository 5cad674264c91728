"""The servers that are measured, each on the first core; who measures has the last one.

Ours is started over a copy of what the stack serves (it must be up; it is paused while others are
measured), beside a Redis of its own.
The peers answer the version in production too, but get the features with the request, look nothing
up and write nothing down: that much is in their favour. Each runs as one process at the settings
that proved fastest here. MLflow: `mlflow models serve`, one uvicorn worker with uvloop and
httptools, on the registered version (its pyfunc) and on the scikit-learn pipeline it was made of.
MLServer: uvloop, httptools, no inference pool (`parallel_workers` 0), no metrics, no gzip; its
scikit-learn runtime, and for the ONNX file a lean custom runtime as its manual shows. BentoML:
`async def`, one worker, no metrics, no access log. onnxruntime has one thread and does not spin, as
in ours. Adaptive batching is on where it helped: for the forest in both (at 16 connections 4 to 5
times the requests/s, at one none lost), not for the ONNX file (MLServer lost a quarter at 16 and
more than half at one; BentoML's was not tried).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
import skops.io

from benchmarks.empty import COMMAND, MODEL
from benchmarks.load import post
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from stack.ready import answers
from stack.settings import PROJECT, load_settings
from tests.conftest import BIN, unused_port
from training.artifacts import CANDIDATE, PIPELINE_FILE
from training.evaluate import TRUSTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from mlflow_server.served_model import ServedModel

CORES = sorted(os.sched_getaffinity(0))
CACHE, PEERS = PROJECT / ".gyre-bench", PROJECT / "benchmarks" / "peers"
CUSTOMERS = range(1, 10_001)
"""Of the shipped orders, whose customers are numbered without a gap."""
V2_TYPES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
BATCHES = {"max_batch_size": 16, "max_batch_time": 0.001}
QUIET = {
    "BENTOML_DO_NOT_TRACK": "True", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}  # fmt: skip


@dataclass(frozen=True)
class Server:
    port: int
    requests: Sequence[bytes]
    processes: tuple[subprocess.Popen[bytes], ...]
    """What it consists of, beside what these started."""

    def cpu(self) -> float:
        """Seconds of its core that it has used, Redis included."""
        used = [each.cpu_times() for top in self.processes for each in tree(top.pid)]
        return sum(times.user + times.system for times in used)

    def workers(self) -> list[psutil.Process]:
        """Processes that answer, where it has several: uvicorn's spawned ones."""
        found = psutil.Process(self.processes[-1].pid).children()
        return [child for child in found if "spawn_main" in " ".join(child.cmdline())]


@dataclass(frozen=True)
class Files:
    """The version in production, as the peers take it."""

    version: str
    contract: ServedModel
    onnx: Path
    pipeline: Path
    sklearn: Path
    """The pipeline as an MLflow model."""


def start(
    opened: ExitStack, log: Path, command: list[str], *ready: str, **environment: str
) -> subprocess.Popen[bytes]:
    """Start `command` on the first core, wait for `ready`; killed when `opened` closes."""
    os.sched_setaffinity(0, {CORES[0]})
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, cwd=PROJECT, stdout=output, stderr=output
        )
    os.sched_setaffinity(0, {CORES[-1]})
    opened.callback(end, process)
    until = time.monotonic() + 90
    for address in ready:
        while problem := answers(address):
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"{problem}\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and what it started: some peers' workers outlive a killed parent."""
    found = tree(process.pid) if process.poll() is None else []
    for each in found:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait(10)


def tree(pid: int) -> list[psutil.Process]:
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


@contextmanager
def paused_stack() -> Iterator[None]:
    """Stop the stack that stands beside: its processes wake on the cores that are measured."""
    pid = int((load_settings().home / "run" / "supervisord.pid").read_text())
    found = psutil.Process(pid).children(recursive=True)
    try:
        for each in found:
            each.suspend()
        yield
    finally:
        for each in found:
            with suppress(psutil.NoSuchProcess):
                each.resume()


def start_ours(opened: ExitStack, folder: Path) -> Server:
    """Copy what the stack serves, then Redis and a worker of our own."""
    settings, home = load_settings(), folder / "home"
    if not (settings.home / "serving" / "models").is_dir():
        raise SystemExit(f"nothing is served from {settings.home}: make up first")
    redis, port, nothing = unused_port(), unused_port(), unused_port()
    for part in ("serving/models", "feast"):
        shutil.copytree(settings.home / part, home / part)
    dump = [str(BIN / "redis-cli"), "-u", settings.redis_address, "--rdb", str(folder / "dump.rdb")]
    subprocess.run(dump, check=True, capture_output=True)
    log = folder / "gyre.log"
    server = [str(BIN / "redis-server"), "--port", str(redis), "--dir", str(folder), "--save", ""]
    store = start(opened, log, server)
    here = {"GYRE_HOME": str(home), "GYRE_REDIS_URL": f"redis://127.0.0.1:{redis}/0"}
    here |= {"GYRE_MLFLOW_URL": f"http://127.0.0.1:{nothing}", "GYRE_SERVING_PORT": str(port)}
    here |= {"GYRE_SERVING_WORKERS": "1"}
    ready = f"http://127.0.0.1:{port}/health/ready"
    process = start(opened, log, [sys.executable, "-m", "serving"], ready, **here)
    asking = [post("/predict", b'{"customer_id":%d}' % key) for key in CUSTOMERS]
    return Server(port, asking, (store, process))


def start_empty(opened: ExitStack, folder: Path, ours: Server) -> Server:
    port = unused_port()
    command = [sys.executable, *COMMAND.split(), "--port", str(port), "--log-level", "warning"]
    ready = f"http://127.0.0.1:{port}/docs"
    process = start(opened, folder / "empty.log", command, ready)
    return Server(port, ours.requests, (process,))


def production(folder: Path) -> Files:
    """Fetch what the registry has of the version in production; the registry is only read."""
    settings = load_settings()
    registry, tracking = Registry(settings), Tracking(settings)
    named = registry.production(MODEL)
    if named is None:
        raise SystemExit(f"{MODEL}: no version is in production: make up first")
    version = registry.version(MODEL, named)
    contract, onnx = registry.served(version)
    (folder / "model.onnx").write_bytes(onnx)
    candidate = tracking.download(version.run_id, CANDIDATE, folder)
    pipeline = skops.io.load(candidate / PIPELINE_FILE, trusted=list(TRUSTED))
    mlflow.sklearn.save_model(
        pipeline, str(folder / "sklearn"), serialization_format="skops", pip_requirements=[],
        skops_trusted_types=list(TRUSTED), pyfunc_predict_fn="predict_proba",
    )  # fmt: skip
    return Files(named, contract, folder / "model.onnx", candidate / PIPELINE_FILE,
                 folder / "sklearn")  # fmt: skip


def environment(name: str) -> Path:
    """Folder of a peer's commands; made from its pins where it is not there yet."""
    home, pins = CACHE / name, PEERS / f"{name}.txt"
    done = home / "pins.txt"
    if not done.exists() or done.read_bytes() != pins.read_bytes():
        uv, python = str(BIN / "uv"), str(home / "bin" / "python")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
                       check=True)  # fmt: skip
        subprocess.run([uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python,
                        str(pins)], check=True)  # fmt: skip
        shutil.copy(pins, done)
    return home / "bin"


def start_mlflow(opened: ExitStack, files: Files, model: str) -> Server:
    port, row = unused_port(), files.contract.defaults
    command = [str(BIN / "mlflow"), "models", "serve", "--model-uri", model, "--port", str(port)]
    command += ["--env-manager", "local", "--workers", "1"]
    address = {"MLFLOW_TRACKING_URI": load_settings().mlflow_address}
    address["PATH"] = f"{BIN}:{os.environ['PATH']}"
    log, ready = files.onnx.with_name("mlflow.log"), f"http://127.0.0.1:{port}/ping"
    process = start(opened, log, command, ready, **QUIET, **address)
    body = {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}
    return Server(port, [post("/invocations", json.dumps(body).encode())], (process,))


def start_mlserver(opened: ExitStack, files: Files, runtime: str, uri: Path, **more: Any) -> Server:
    port, folder = unused_port(), files.onnx.parent / f"mlserver-{runtime}"
    folder.mkdir()
    kind = {"content_type": "pd", "extra": {"predict_fn": "predict_proba"}}
    model = {"name": "m", "implementation": f"mlserver_runtime.{runtime}",
             "parameters": {"uri": str(uri)} | (kind if runtime == "Sklearn" else {})}  # fmt: skip
    (folder / "model-settings.json").write_text(json.dumps(model | more))
    own = {"host": "127.0.0.1", "http_port": port, "grpc_port": unused_port(),
           "parallel_workers": 0, "metrics_endpoint": None, "gzip_enabled": False,
           "debug": False}  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(own))
    command = [str(environment("mlserver") / "mlserver"), "start", str(folder)]
    log, ready = folder / "log", f"http://127.0.0.1:{port}/v2/models/m/ready"
    process = start(opened, log, command, ready, PYTHONPATH=str(PEERS), **QUIET)
    inputs = [{"name": name, "shape": [1, 1], "datatype": V2_TYPES[kind],
               "data": [files.contract.defaults[name]]}
              for name, kind in files.contract.features.items()]  # fmt: skip
    body = json.dumps({"inputs": inputs}).encode()
    return Server(port, [post("/v2/models/m/infer", body)], (process,))


def start_bentoml(opened: ExitStack, files: Files, service: str, file: Path) -> Server:
    port = unused_port()
    command = [str(environment("bentoml") / "bentoml"), "serve", f"bentoml_service:{service}"]
    command += ["--working-dir", str(PEERS), "--host", "127.0.0.1", "--port", str(port)]
    home = files.onnx.parent / f"bentoml-{service}"
    log, ready = files.onnx.with_name(f"bentoml-{service}.log"), f"http://127.0.0.1:{port}/readyz"
    more = {"MODEL_FILE": str(file), "BENTOML_HOME": str(home)}
    process = start(opened, log, command, ready, **QUIET, **more)
    row = files.contract.defaults
    body = json.dumps({"row": row} if service == "Onnx" else {"rows": [row]}).encode()
    return Server(port, [post("/predict", body)], (process,))


def peers(files: Files) -> dict[str, Callable[[ExitStack], Server]]:
    """How to start each, by its name and what it answers with."""
    return {
        "mlflow forest": lambda o: start_mlflow(o, files, str(files.sklearn)),
        "MLServer forest": lambda o: start_mlserver(o, files, "Sklearn", files.pipeline, **BATCHES),
        "BentoML forest": lambda o: start_bentoml(o, files, "Sklearn", files.pipeline),
        "mlflow ONNX": lambda o: start_mlflow(o, files, f"models:/{MODEL}/{files.version}"),
        "MLServer ONNX": lambda o: start_mlserver(o, files, "Onnx", files.onnx),
        "BentoML ONNX": lambda o: start_bentoml(o, files, "Onnx", files.onnx),
    }

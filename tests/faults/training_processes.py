"""A program that runs stages of training in processes of its own, which may be killed on the way.

Each line of its input is a job in JSON: settings, spec, as_of, key, stage, run_id, version, and
dies: the effect after which the process is killed, or null. An effect is a request that changes
something in MLflow, or a transaction of the ledger. It answers with a line: what the stage
returned and how many effects it had; null if it was killed. Forked: the imports take longer than
any stage.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import requests
import sqlalchemy as sql

from core.settings import PROJECT, Settings
from core.spec import ModelSpec
from feature_repo.datasets import load_dataset
from mlflow_server.tracking import Tracking
from tests.preloaded import commands_folder
from training import chain
from training.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM = (
    "great_expectations", "ibis.backends.duckdb", "mlflow.onnx", "mlflow.pyfunc.scoring_server",
    "feature_repo.datasets.orders", "feature_repo.extensions.offline", "matplotlib.pyplot",
)  # fmt: skip
"""What stages import late."""


class Effects:
    """Counts them, and ends its process by SIGKILL after a given one."""

    def __init__(self, dies: int | None) -> None:
        self.count = 0
        self._dies = dies
        for client in (requests.Session, httpx.Client):  # MLflow's client, and ours
            client.send = self._counted(client.send)
        sql.event.listen(sql.Engine, "commit", lambda _: self.add())

    def _counted(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def send_and_count(client: Any, request: Any, **options: Any) -> Any:
            answer = send(client, request, **options)
            if request.method != "GET" and "search" not in str(request.url):
                self.add()
            return answer

        return send_and_count

    def add(self) -> None:
        self.count += 1
        if self.count == self._dies:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def training_processes() -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Run this program; what is yielded sends it a job and returns its answer."""
    program = [commands_folder() / "python", "-m", "tests.faults.training_processes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PROMETHEUS_")
    }
    with subprocess.Popen(program, cwd=PROJECT, env=variables, **pipes) as process:

        def run_job(job: dict[str, Any]) -> Any:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run_job


def run_stage(job: dict[str, Any]) -> Any:
    settings = Settings.model_validate(job["settings"])
    spec = ModelSpec(**job["spec"])
    run_id = job["run_id"]
    reasons = {"reason": f"test {job['key']}", "who": job["key"]}
    if job["stage"] == "open_run":
        as_of = datetime.fromisoformat(job["as_of"])
        return chain.open_run(
            settings, spec, as_of, key=job["key"], force=True, **reasons
        )
    if job["stage"] == "promote":
        with Tracking(settings).on_record(run_id):  # as chain and DAG do
            return chain.promote(settings, spec, run_id, job["version"], **reasons)
    stages = {stage.name: stage for stage in STAGES}
    return stages[job["stage"]].run(settings, spec, run_id)


def run(job: dict[str, Any], answer: Path) -> Any:
    process = os.fork()
    if not process:
        os.dup2(2, 1)  # what it prints is no answer
        effects = Effects(job["dies"])
        value = run_stage(job)
        answer.write_text(json.dumps([value, effects.count]))
        os._exit(0)
    os.waitpid(process, 0)
    return json.loads(answer.read_text()) if answer.exists() else None


if __name__ == "__main__":
    for name in WARM:
        import_module(name)
    load_dataset("orders")
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            answer = run(json.loads(line), Path(folder) / "answer")
            print(json.dumps(answer), flush=True)  # noqa: T201

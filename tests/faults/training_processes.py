"""A program that runs stages of training in processes of its own, which may be killed on the way.

Each line of its input is a list of jobs in JSON, all at once: settings, spec, as_of, key, stages,
run_id, version, and dies: the effect after which the process is killed, or null. An effect is a
request that changes something in MLflow, or a transaction of the ledger. It answers with a line:
for each job what its last stage returned, or why it was refused, and how many effects it had; null
if it was killed. Forked: the imports take longer than any stage.
"""

from __future__ import annotations

import json
import multiprocessing
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

WAIT = 600
WARM = (
    "great_expectations", "ibis.backends.duckdb", "mlflow.onnx", "mlflow.pyfunc.scoring_server",
    "feature_repo.datasets.orders", "feature_repo.extensions.offline", "matplotlib.pyplot",
)  # fmt: skip
"""What stages import late."""


class Effects:
    """Counts them, and ends its process by SIGKILL after the one asked for."""

    def __init__(self, dies: int | None) -> None:
        self.count, self._dies = 0, dies
        for http in (requests.Session, httpx.Client):  # MLflow's client, and ours
            http.send = self._counted(http.send)
        sql.event.listen(sql.Engine, "commit", lambda _: self.one_more())

    def _counted(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def sent(http: Any, request: Any, **how: Any) -> Any:
            answer = send(http, request, **how)
            if request.method != "GET" and "search" not in str(request.url):
                self.one_more()
            return answer

        return sent

    def one_more(self) -> None:
        self.count += 1
        if self.count == self._dies:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def training_processes() -> Iterator[Callable[..., list[Any]]]:
    """Run this program; what is yielded sends it jobs and returns its answer."""
    program = [commands_folder() / "python", "-m", "tests.faults.training_processes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PROMETHEUS_")
    }
    with subprocess.Popen(program, cwd=PROJECT, env=own, **pipes) as process:

        def run(*jobs: dict[str, Any]) -> list[Any]:
            process.stdin.write(json.dumps(jobs) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run


def carried_out(job: dict[str, Any], begin: Any) -> Any:
    settings, spec = Settings.model_validate(job["settings"]), ModelSpec(**job["spec"])
    run_id, version, said = job["run_id"], job["version"], None
    named = {"reason": f"test {job['key']}", "who": job["key"]}
    stages = {stage.name: stage for stage in STAGES}
    for stage in job["stages"]:
        begin.wait(WAIT)
        match stage:
            case "open_run":
                as_of = datetime.fromisoformat(job["as_of"])
                opened = chain.open_run(
                    settings, spec, as_of, key=job["key"], force=True, **named
                )
                said = run_id = opened
            case "promote":
                with Tracking(settings).on_record(run_id):  # as chain and DAG do
                    said = chain.promote(settings, spec, run_id, version, **named)
            case _:
                said = stages[stage].run(settings, spec, run_id)
                version = said if stage == "register" else version
    return said


def run(jobs: list[dict[str, Any]], folder: Path) -> list[Any]:
    begin, children = multiprocessing.get_context("fork").Barrier(len(jobs)), []
    for number, job in enumerate(jobs):
        answer = folder / str(number)
        process = os.fork()
        if not process:
            os.dup2(2, 1)  # what it prints is no answer
            effects = Effects(job["dies"])
            try:
                said = carried_out(job, begin)
            except Exception as exc:  # noqa: BLE001  (the test says what it expected)
                said = f"{type(exc).__name__}: {exc}"
            answer.write_text(json.dumps([said, effects.count]))
            os._exit(0)
        children.append((process, answer))
    for process, _ in children:
        os.waitpid(process, 0)
    return [
        json.loads(answer.read_text()) if answer.exists() else None
        for _, answer in children
    ]


if __name__ == "__main__":
    for name in WARM:
        import_module(name)
    load_dataset("orders")
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(run(json.loads(line), Path(name))), flush=True)  # noqa: T201

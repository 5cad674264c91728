"""A program that promotes from processes of its own, which may be killed on the way.

Each line of its input is a job in JSON: settings, model, versions (one process each, all at once),
replaces, dies ("before" or "after" the alias is moved, or null). It answers with a line in JSON:
by version, what the process wrote and how it ended.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import PromotionRefusedError
from core.settings import PROJECT, Settings
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.registry import Registry
from tests.preloaded import commands_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY_SECONDS = 600


class Deadly(Registry):
    """Ends its process by SIGKILL around the first alias that is moved."""

    dies: str

    def set_alias(self, model: str, role: str, version: str | None) -> bool:
        if self.dies == "after":
            super().set_alias(model, role, version)
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def promoting_processes(settings: Settings) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run this program; what is yielded sends it one job and returns its answer."""
    program = [commands_folder() / "python", "-m", "tests.faults.promoting_processes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    place = {"home": str(settings.home), "mlflow_port": settings.mlflow_port}
    with subprocess.Popen(program, cwd=PROJECT, **pipes) as process:

        def run_job(
            model: str,
            versions: list[str],
            *,
            replaces: str = "1",
            dies: Literal["before", "after"] | None = None,
        ) -> dict[str, Any]:
            job = {
                "settings": place,
                "model": model,
                "versions": versions,
                "replaces": replaces,
                "dies": dies,
            }
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run_job


def attempt(job: dict[str, Any], version: str, begin: Any) -> str:
    settings = Settings(**job["settings"])
    registry = Registry(settings)
    if job["dies"]:
        registry = Deadly(settings)
        registry.dies = job["dies"]
    ledger = Ledger(settings)
    begin.wait(READY_SECONDS)
    reasons = {"who": f"process {version}", "why": "race", "replaces": job["replaces"]}
    try:
        promote(registry, ledger, job["model"], version, **reasons)
    except PromotionRefusedError as exc:
        return str(exc)
    return "won"


def run(job: dict[str, Any], folder: Path) -> dict[str, tuple[str, int]]:
    begin = multiprocessing.get_context("fork").Barrier(len(job["versions"]))
    processes = {}
    for version in job["versions"]:
        process = os.fork()
        if not process:
            (folder / version).write_text("no answer")
            (folder / version).write_text(attempt(job, version, begin))
            os._exit(0)
        processes[version] = process
    ended = {}
    for version, process in processes.items():
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        ended[version] = ((folder / version).read_text(), code)
    return ended


if __name__ == "__main__":
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(run(json.loads(line), Path(name))), flush=True)  # noqa: T201

"""The parts of the serving and registry tests, and how they are broken."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import pytest

from tests.conftest import wait_until
from tests.mlflow_server.conftest import ledger, model, registry  # noqa: F401  (fixtures)
from tests.serving.conftest import rig, served  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stack.settings import Settings
    from tests.serving.conftest import Rig


@pytest.fixture(scope="session")
def settings(rig: Rig) -> Settings:  # noqa: F811
    """Of the one MLflow and the one ledger that all these tests share."""
    return rig.settings


@contextmanager
def broken(
    rig: Rig,  # noqa: F811
    part: Literal["redis", "mlflow"],
    how: Literal["killed", "hangs"],
) -> Iterator[None]:
    """The server dead, or accepting and never answering; back when the block ends."""
    process = getattr(rig, part)
    if how == "killed":
        process.kill()
        process.wait()
        again = getattr(rig, f"start_{part}")
    else:
        again = psutil.Process(process.pid).resume
        psutil.Process(process.pid).suspend()
        stopped = psutil.STATUS_STOPPED
        wait_until("SIGSTOP", lambda: psutil.Process(process.pid).status() == stopped, 5)
    try:
        yield
    finally:
        again()


@pytest.fixture(scope="session")
def promoting(rig: Rig) -> Iterator[Callable[..., dict[str, Any]]]:  # noqa: F811
    """Promote from other processes, see `promoting_processes.py`."""
    program = [sys.executable, str(Path(__file__).with_name("promoting_processes.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    place = {"home": str(rig.settings.home), "mlflow_port": rig.settings.mlflow_port}
    with subprocess.Popen(program, **pipes) as process:

        def job(
            model: str,
            versions: list[str],
            *,
            replaces: str = "1",
            dies: Literal["before", "after"] | None = None,
        ) -> dict[str, Any]:
            what = {"model": model, "versions": versions, "replaces": replaces, "dies": dies}
            process.stdin.write(json.dumps({"settings": place, **what}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield job

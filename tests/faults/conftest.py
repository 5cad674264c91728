"""The parts of the serving and registry tests, and how they are broken."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import psutil
import pytest

from tests.conftest import unused_port, wait_until
from tests.faults.promoting_processes import promoting_processes
from tests.mlflow_server.conftest import ledger, model, registry  # noqa: F401  (fixtures)
from tests.serving.conftest import rig, served  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import httpx

    from core.settings import Settings
    from tests.serving.conftest import Rig


@pytest.fixture(scope="session")
def settings(rig: Rig) -> Settings:
    """Of the one MLflow and the one ledger that all these tests share."""
    return rig.settings


def second_server(
    rig: Rig, **changed: Any
) -> AbstractContextManager[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """Serve from a home of its own; a client of the server and its process."""
    home = rig.home_beside()
    return rig.serving(home=home, serving_port=unused_port(), **changed)


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those that answer, of all that `python -m serving` started."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@contextmanager
def standing_still(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A server that does nothing until the block ends, but for a fetch that has begun."""
    stopped = [psutil.Process(process.pid), *workers(process)]
    for server in stopped:
        server.suspend()
    try:
        yield
    finally:
        for server in stopped:
            server.resume()


@contextmanager
def broken(
    rig: Rig,
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
        wait_until("SIGSTOP", lambda: psutil.Process(process.pid).status() == stopped)
    try:
        yield
    finally:
        again()


@pytest.fixture(scope="session")
def promoting(rig: Rig) -> Iterator[Callable[..., dict[str, Any]]]:
    """Promote from other processes, see `promoting_processes.py`."""
    with promoting_processes(rig.settings) as job:
        yield job

"""Real tools in temporary folders, on free ports: nothing here stands in for anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from core.settings import PROJECT, Settings, free_ports
from feature_repo.feast_config import write_feast_config
from mlflow_server import server
from stack.environment import process_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BIN = Path(sys.executable).parent
START = date(2099, 11, 20)
"""Far ahead: whatever a test promotes now was promoted before AS_OF."""
AS_OF = datetime(2099, 11, 20, 12, tzinfo=UTC)


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def at_most(seconds: float) -> float:
    """A limit of time: `seconds`, or three times that where other tests run beside this one."""
    return 3 * seconds if "PYTEST_XDIST_WORKER" in os.environ else seconds


def wait_until(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.1)


@contextmanager
def running(command: list[str], log: Path, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    # Feast, once imported by a test, turns on Prometheus's multi-process mode for all children.
    own = {k: v for k, v in (os.environ | extra).items() if not k.startswith("PROMETHEUS_")}
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=PROJECT, env=own)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


@contextmanager
def redis_server(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(BIN / "redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(folder), "--save", "", "--appendonly", "yes"]

    def pong() -> bool:
        ping = [str(BIN / "redis-cli"), "-p", str(port), "ping"]
        return b"PONG" in subprocess.run(ping, capture_output=True, check=False).stdout

    with running(command, folder / "redis.log") as process:
        wait_until("Redis", pong)
        yield process


@contextmanager
def mlflow_server(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / "mlflow.log"
    with running(server.command(settings), log, **server.environment(settings)) as process:
        wait_until("MLflow", lambda: answers(f"{settings.mlflow_address}/health"), 120)
        yield process


def feast_apply(settings: Settings) -> None:
    """Publish the shipped definitions as a user does."""
    write_feast_config(settings)
    done = subprocess.run(
        [str(BIN / "feast"), "apply"],
        cwd=PROJECT / "feature_repo",
        env=process_environment(settings),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def new_settings(home: Path, **more: Any) -> Settings:
    """Settings of an installation of its own, its demo dated for START."""
    return Settings(**({"home": home, "demo_start": START} | free_ports() | more))

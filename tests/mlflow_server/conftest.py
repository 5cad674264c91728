"""The real MLflow server, once per test session, on a free port in a temporary folder."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from typing import TYPE_CHECKING

import httpx
import pytest

from mlflow_server import server
from mlflow_server.connection import client
from mlflow_server.ledger import Ledger
from mlflow_server.registry import Registry
from stack.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return unused_port()


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("gyre")
    made = Settings(home=home, mlflow_port=unused_port())
    log = home / "mlflow.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            server.command(made),
            env={**os.environ, **server.environment(made)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(made.mlflow_address, process, log)
            yield made
        finally:
            process.terminate()
            process.wait(20)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=2).text == "OK":
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture(scope="session")
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()


@pytest.fixture
def model(settings: Settings) -> str:
    """A registered model of its own with versions 1 to 5, none of them in any role."""
    return new_model(settings, 5)


def new_model(settings: Settings, versions: int) -> str:
    name, api = f"m{uuid.uuid4().hex[:12]}", client(settings)
    api.create_registered_model(name)
    run = api.create_run("0").info
    for _ in range(versions):
        api.create_model_version(name, source=f"{run.artifact_uri}/model", run_id=run.run_id)
    return name


def stages(settings: Settings, model: str) -> dict[str, str]:
    versions = client(settings).search_model_versions(f"name = '{model}'")
    return {str(v.version): v.current_stage for v in versions if v.current_stage != "None"}

"""The real MLflow server, once per test session, on a free port in a temporary folder."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from core.settings import Settings
from mlflow_server.ledger import Ledger
from mlflow_server.registry import Registry
from tests.conftest import BIN, mlflow_server, unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator


def client(settings: Settings) -> MlflowClient:
    """MLflow's own client, as anybody has it."""
    return MlflowClient(settings.mlflow_address, settings.mlflow_address)


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A server that all tests of one worker share (tests/conftest.py)."""
    home = tmp_path_factory.mktemp("gyre")
    settings = Settings(home=home, mlflow_port=unused_port())
    with mlflow_server(settings, BIN / "python"):
        yield settings


@pytest.fixture(scope="session")
def settings(mlflow: Settings) -> Settings:
    return mlflow


@pytest.fixture(scope="session")
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture(scope="session")
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings)
    yield ledger
    ledger.close()


@pytest.fixture
def model(settings: Settings) -> str:
    """A registered model of its own with versions 1 to 5, none of them in any role."""
    return new_model(settings, 5)


def new_model(settings: Settings, versions: int) -> str:
    name = f"m{uuid.uuid4().hex[:12]}"
    api = client(settings)
    api.create_registered_model(name)
    run = api.create_run("0").info
    for _ in range(versions):
        api.create_model_version(
            name, source=f"{run.artifact_uri}/model", run_id=run.run_id
        )
    return name


def stages(settings: Settings, model: str) -> dict[str, str]:
    versions = client(settings).search_model_versions(f"name = '{model}'")
    return {
        str(v.version): v.current_stage for v in versions if v.current_stage != "None"
    }

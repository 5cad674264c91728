"""The real MLflow server, once per test session, on a free port in a temporary folder."""

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from core.errors import PromotionRefusedError
from core.settings import Settings
from mlflow_server import promotion
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.registry import Registry
from tests.conftest import BIN, mlflow_server, new_settings, unused_port
from tests.postgres import postgres_server

ANN = {"who": "ann", "why": "better"}


def client(settings: Settings) -> MlflowClient:
    """MLflow's own client, as anybody has it."""
    return MlflowClient(settings.mlflow_address, settings.mlflow_address)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A server that all tests of one worker share (tests/conftest.py)."""
    home = tmp_path_factory.mktemp("gyre")
    settings = Settings(home=home, mlflow_port=unused_port())
    with mlflow_server(settings, BIN / "python"):
        yield settings


@pytest.fixture(
    params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.nightly)]
)
def empty_database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Settings]:
    """Settings of an empty database."""
    if request.param == "SQLite":
        yield new_settings(tmp_path)
    else:
        with postgres_server(tmp_path / "log") as server:
            yield new_settings(tmp_path, database_url=server.address)


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


class Roles:
    """The roles of one model, changed by Ann."""

    def __init__(
        self, settings: Settings, registry: Registry, ledger: Ledger, model: str
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.ledger = ledger
        self.model = model
        place = (registry, ledger, model)
        self.promote = partial(promotion.promote, *place, **ANN)
        self.release = partial(promotion.release, *place, **ANN)
        self.rollback = partial(promotion.rollback, *place, **ANN)
        self.reconcile = partial(promotion.reconcile, *place)

    def refuses(self, version: str, reason: str, **more: Any) -> None:
        with pytest.raises(PromotionRefusedError, match=reason):
            self.promote(version, **more)

    @property
    def aliases(self) -> dict[str, str]:
        return self.registry.aliases(self.model)

    @property
    def stages(self) -> dict[str, str]:
        return stages(self.settings, self.model)

    @property
    def rows(self) -> list[LedgerRow]:
        return self.ledger.rows(self.model)


@pytest.fixture
def roles(settings: Settings, registry: Registry, ledger: Ledger, model: str) -> Roles:
    return Roles(settings, registry, ledger, model)

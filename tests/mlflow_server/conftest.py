"""The real MLflow server, once per test session, on a free port in a temporary folder."""

import uuid
from functools import partial

import pytest
from mlflow import MlflowClient

from core.errors import PromotionRefusedError
from core.settings import Settings
from mlflow_server.api.registry import Registry
from mlflow_server.manifest import CONTRACT_FILE, ONNX_FILE, digest_tags
from mlflow_server.promotion import promote
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.tags import packed
from tests.conftest import BIN, mlflow_server, new_settings, unused_port
from tests.support.stores.postgres import postgres_server

ANN = {"who": "ann", "why": "better"}


def client(settings):
    """MLflow's own client, as anybody has it."""
    return MlflowClient(settings.mlflow_address, settings.mlflow_address)


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """A server that all tests of one worker share (tests/conftest.py)."""
    home = tmp_path_factory.mktemp("gyre")
    # As behind nginx, whose header names a user.
    settings = Settings(home=home, mlflow_port=unused_port(), behind_proxy=True)
    with mlflow_server(settings, BIN / "python"):
        yield settings


@pytest.fixture(
    params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.nightly)]
)
def empty_database(request, tmp_path):
    """Settings of an empty database."""
    if request.param == "SQLite":
        yield new_settings(tmp_path)
    else:
        with postgres_server(tmp_path / "log") as server:
            yield new_settings(tmp_path, database_url=server.address)


@pytest.fixture(scope="session")
def registry(settings):
    return Registry(settings)


@pytest.fixture(scope="session")
def ledger(settings):
    ledger = Ledger(settings)
    yield ledger
    ledger.close()


@pytest.fixture
def model(settings):
    """A registered model of its own with versions 1 to 5, none of them in any role."""
    return new_model(settings, 5)


def new_model(settings, versions, folder=None, name=None):
    """Register versions of a model; with a folder to write them in, they have files."""
    name = name or f"m{uuid.uuid4().hex[:12]}"
    api = client(settings)
    api.create_registered_model(name)
    run = api.create_run("0").info
    tags = {}
    if folder:
        for file, place in ((ONNX_FILE, "model"), (CONTRACT_FILE, "model/extra_files")):
            (folder / file).write_text(file)
            api.log_artifact(run.run_id, folder / file, place)
        tags = packed(digest_tags(folder))
    for _ in range(versions):
        source = f"{run.artifact_uri}/model"
        api.create_model_version(name, source, run.run_id, tags)
    return name


def stages(settings, model):
    versions = client(settings).search_model_versions(f"name = '{model}'")
    return {
        str(v.version): v.current_stage for v in versions if v.current_stage != "None"
    }


class Roles:
    """The roles of one model, changed by Ann."""

    def __init__(self, settings, registry, ledger, model):
        self.settings = settings
        self.registry = registry
        self.ledger = ledger
        self.model = model
        place = (registry, ledger, model)
        self.promote = partial(promote.promote, *place, **ANN)
        self.release = partial(promote.release, *place, **ANN)
        self.rollback = partial(promote.rollback, *place, **ANN)
        self.reconcile = partial(promote.reconcile, *place)

    def refuses(self, version, reason, **more):
        with pytest.raises(PromotionRefusedError, match=reason):
            self.promote(version, **more)

    @property
    def aliases(self):
        return self.registry.aliases(self.model)

    @property
    def stages(self):
        return stages(self.settings, self.model)

    @property
    def rows(self):
        return self.ledger.rows(self.model)


@pytest.fixture
def roles(settings, registry, ledger, model):
    return Roles(settings, registry, ledger, model)

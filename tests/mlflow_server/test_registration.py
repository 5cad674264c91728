"""A trained model becomes exactly one version, which any MLflow client can load."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import uuid
import warnings
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from core.errors import RegistryError
from mlflow_server.promotion import promote
from mlflow_server.pyfunc import ModelFile
from mlflow_server.registration import register
from mlflow_server.served_model import wrong_files
from mlflow_server.tracking import Tracking
from tests.mlflow_server.conftest import stages
from tests.preloaded import commands_folder
from training.estimators import build_pipeline
from training.onnx_export import export

if TYPE_CHECKING:
    from pathlib import Path

    from sklearn.pipeline import Pipeline

    from core.settings import Settings
    from mlflow_server.ledger import Ledger
    from mlflow_server.registry import Registry, Version

FEATURES = {"orders": "int64", "spend": "double", "segment": "string"}
TAGS = {"as_of": "2026-11-01", "reason": "drift", "code_sha256": "0f" * 32}
REQUIREMENTS = ["onnxruntime", "numpy", "pandas"]
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from mlflow import MlflowClient
from core.settings import Settings
import test_registration as tests
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(MlflowClient, sys.argv[7], die)
settings = Settings(home=Path(sys.argv[2]), mlflow_port=int(sys.argv[3]))
tests.registered(settings, sys.argv[4], sys.argv[5], Path(sys.argv[6]))
"""


def trained() -> tuple[Pipeline, pd.DataFrame]:
    chance = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "orders": chance.poisson(2, 300),
            "spend": chance.exponential(60, 300),
            "segment": chance.choice(["new", "loyal"], 300),
        }
    )
    churned = (frame.orders < 2).astype(int)
    parameters = {"n_estimators": 5, "max_depth": 3}
    return build_pipeline("random_forest", parameters, FEATURES, 7).fit(
        frame, churned
    ), frame


def registered(
    settings: Settings, name: str, run_id: str, folder: Path, **changes: Any
) -> Version:
    pipeline, frame = trained()
    folder.mkdir(exist_ok=True)
    (folder / "serving.json").write_text(json.dumps({"model": name, "threshold": 0.5}))
    (folder / "pipeline.skops").write_bytes(b"skops would be here")
    (folder / "proof.json").write_text("{}")
    arguments = {
        "model": name,
        "run_id": run_id,
        "exported": ModelFile(export(pipeline, FEATURES).SerializeToString()),
        "files": folder,
        "input_example": frame[:5],
        "tags": {"gyre.seed": "7"},
        "description": "a test",
        "requirements": REQUIREMENTS,
    }
    return register(settings, **{**arguments, **changes})


@pytest.fixture
def run_id(settings: Settings) -> str:
    return Tracking(settings).start_or_find_run(
        "registration", uuid.uuid4().hex, "run", {}
    )


def test_a_registered_model_is_an_ordinary_mlflow_model(
    settings: Settings,
    registry: Registry,
    ledger: Ledger,
    run_id: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = f"m{run_id[:12]}"
    mlflow_logger = logging.getLogger("mlflow")
    mlflow_logger.addHandler(caplog.handler)
    version = registered(settings, name, run_id, tmp_path / "files")
    mlflow_logger.removeHandler(caplog.handler)
    assert caplog.messages == []
    assert registered(settings, name, run_id, tmp_path / "files") == version
    assert registry.versions(name) == [version]
    assert (version.model, version.version, version.run_id) == (name, "1", run_id)
    assert stages(settings, name) == {"1": "Staging"}
    registry.download(version, tmp_path / "served")
    served = {path.name for path in (tmp_path / "served").iterdir()}
    assert served == {"model.onnx", "serving.json"}
    assert wrong_files(tmp_path / "served", version.tags) == []

    promote(registry, ledger, name, "1", who="ann", why="first")
    pipeline, frame = trained()
    expected = pipeline.predict_proba(frame)[:, 1]
    mlflow.set_tracking_uri(settings.mlflow_address)
    for address in (f"models:/{name}@production", f"models:/{name}/production"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
            loaded = mlflow.pyfunc.load_model(address)
        scores = loaded.predict(frame)["score"].to_numpy()
        assert scores == pytest.approx(expected, abs=1e-6)
    columns = loaded.metadata.get_input_schema().inputs
    assert [column.type.name for column in columns] == ["long", "double", "string"]
    assert loaded.metadata.saved_input_example_info is not None


def test_people_see_a_few_words_and_one_tag_has_every_hash(
    settings: Settings, registry: Registry, run_id: str, tmp_path: Path
) -> None:
    name, api = f"m{run_id[:12]}", Tracking(settings)
    version = registered(settings, name, run_id, tmp_path / "files", tags=TAGS)
    found = api.get_model_version(name, "1")
    assert set(found.tags) == {"as_of", "reason", "lineage"}
    assert found.description
    page = f"{settings.console_address}/status/{name}"
    assert page in api.get_registered_model(name).description
    assert TAGS.items() <= version.tags.items()
    assert registry.version(name, "1").tags == version.tags
    for edited in ("no JSON", "[1]", "{}"):
        api.set_model_version_tag(name, "1", "lineage", edited)
        assert "registered was no digest" in registry.damage(name, "1")


@pytest.mark.parametrize("at", ["log_model_artifacts", "create_model_version"])
def test_killed_before_upload_or_version_the_next_try_makes_one(
    settings: Settings, registry: Registry, run_id: str, tmp_path: Path, at: str
) -> None:
    name, here = f"m{run_id[:12]}", __file__.rsplit("/", 1)[0]
    home, port = settings.home, str(settings.mlflow_port)
    place = [here, home, port, name, run_id, tmp_path / "files", at]
    died = subprocess.run(
        [commands_folder() / "python", "-c", KILLED, *place], check=False
    )
    assert died.returncode == 128 + signal.SIGKILL
    assert registry.versions(name) == []
    version = registered(settings, name, run_id, tmp_path / "files")
    assert registry.versions(name) == [version]
    registry.download(version, tmp_path / "served")
    assert wrong_files(tmp_path / "served", version.tags) == []
    api = Tracking(settings)
    run = api.get_run(run_id)
    (logged,) = api.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run_id}'"
    )
    assert [each.model_id for each in run.outputs.model_outputs] == [logged.model_id]


def test_a_run_that_does_not_exist_makes_no_version(
    settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(RegistryError, match="0123456789abcdef"):
        registered(settings, "m_lost", "0123456789abcdef" * 2, tmp_path / "files")
    assert registry.versions("m_lost") == []

"""A trained model becomes exactly one version, which any MLflow client can load."""

from __future__ import annotations

import json
import logging
import uuid
import warnings

import mlflow
import numpy as np
import pandas as pd
import pytest

from mlflow_server.promotion import promote
from mlflow_server.pyfunc import ModelFile
from mlflow_server.registration import register
from mlflow_server.served_model import wrong_files
from mlflow_server.tracking import Tracking
from tests.mlflow_server.conftest import stages
from training.estimators import build_pipeline
from training.onnx_export import export

FEATURES = {"orders": "int64", "spend": "double", "segment": "string"}
TAGS = {"as_of": "2026-11-01", "reason": "drift", "code_sha256": "0f" * 32}


def trained():
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


def registered(settings, name, run_id, folder):
    pipeline, frame = trained()
    folder.mkdir(exist_ok=True)
    (folder / "serving.json").write_text(json.dumps({"model": name, "threshold": 0.5}))
    (folder / "pipeline.skops").write_bytes(b"skops would be here")
    return register(
        settings,
        model=name,
        run_id=run_id,
        exported=ModelFile(export(pipeline, FEATURES).SerializeToString()),
        files=folder,
        input_example=frame[:5],
        tags=TAGS,
        description="a test",
        requirements=["onnxruntime", "numpy", "pandas"],
    )


@pytest.fixture
def run_id(settings):
    return Tracking(settings).start_or_find_run(
        "registration", uuid.uuid4().hex, "run", {}
    )


def test_a_registered_model_is_an_ordinary_mlflow_model(
    settings, registry, ledger, run_id, tmp_path, caplog
):
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
    assert TAGS.items() <= version.tags.items()
    # People see few tags; one of them has every hash.
    shown = Tracking(settings).get_model_version(name, "1")
    assert set(shown.tags) == {"as_of", "reason", "lineage"}
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

"""A run's model becomes one version, which any MLflow client can load."""

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
from mlflow_server.served_model import CONTRACT_FILE, wrong_files
from mlflow_server.tracking import Tracking
from tests.mlflow_server.conftest import stages
from tests.serving.conftest import FEATURES, PANDAS_TYPES, SPEC, contract, tiny_onnx

TAGS = {"as_of": "2026-11-01", "reason": "drift", "code_sha256": "0f" * 32}
TYPES = {name: PANDAS_TYPES[kind] for name, kind in SPEC.features.items()}
ROWS = [FEATURES, FEATURES | {"days_since_last_order": 90}]


def test_a_registered_model_is_an_ordinary_mlflow_model(
    settings, registry, ledger, tmp_path, caplog
):
    key = uuid.uuid4().hex
    run_id = Tracking(settings).start_or_find_run("registration", key, "run", {})
    name = f"m{run_id[:12]}"
    frame = pd.DataFrame(ROWS).astype(TYPES)
    files = tmp_path / "files"
    files.mkdir()
    (files / CONTRACT_FILE).write_text(contract().model_dump_json())
    arguments = {
        "model": name,
        "run_id": run_id,
        "exported": ModelFile(tiny_onnx(-1.0).SerializeToString()),
        "files": files,
        "input_example": frame,
        "tags": TAGS,
        "description": "a test",
        "requirements": ["onnxruntime", "numpy", "pandas"],
    }
    mlflow_logger = logging.getLogger("mlflow")
    mlflow_logger.addHandler(caplog.handler)
    version = register(settings, **arguments)
    mlflow_logger.removeHandler(caplog.handler)
    assert caplog.messages == []
    assert register(settings, **arguments) == version
    assert registry.versions(name) == [version]
    assert (version.model, version.version, version.run_id) == (name, "1", run_id)
    assert stages(settings, name) == {"1": "Staging"}
    assert TAGS.items() <= version.tags.items()
    # People see few tags; one of them has every hash.
    shown = Tracking(settings).get_model_version(name, "1")
    assert set(shown.tags) == {"as_of", "reason", "lineage"}
    served = tmp_path / "served"
    registry.download(version, served)
    assert {path.name for path in served.iterdir()} == {"model.onnx", CONTRACT_FILE}
    assert wrong_files(served, version.tags) == []

    promote(registry, ledger, name, "1", who="ann", why="first")
    days = frame["days_since_last_order"]
    expected = 1 / (1 + np.exp(1.0 - 0.01 * days))
    mlflow.set_tracking_uri(settings.mlflow_address)
    for address in (f"models:/{name}@production", f"models:/{name}/production"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
            loaded = mlflow.pyfunc.load_model(address)
        scores = loaded.predict(frame)["score"].to_numpy()
        assert scores == pytest.approx(expected.to_numpy(), abs=1e-6)
    columns = loaded.metadata.get_input_schema().inputs
    types = {"int64": "long", "float64": "double", "object": "string"}
    assert [column.type.name for column in columns] == [
        types[kind] for kind in TYPES.values()
    ]
    assert loaded.metadata.saved_input_example_info is not None

"""A worker serves the loop where an addition is not there."""

import shutil

import pytest

from core.project import CLONE
from tests.serving.conftest import FEATURES, KNOWN, SPEC

PACKAGES = (
    "core",
    "feature_engine",
    "feature_repo",
    "mlflow_server",
    "models",
    "serving",
)
NO_CLONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
"""
"""Hides the packages of the clone, which are installed as editable ones."""
KEY = {"customer_id": KNOWN}
ADDED = {
    "/explain": KEY,
    f"/v1/models/{SPEC.name}:predict": {"instances": [KEY]},
    "/invocations": {"dataframe_records": [KEY]},
    "/events/{dataset}": {},
}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The packages that a worker needs, in a folder from which Python imports them."""
    for name in PACKAGES:
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CLONE / name, tmp_path / name, ignore=hidden)
    (tmp_path / "sitecustomize.py").write_text(NO_CLONE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("GYRE_PROJECT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("addition", "left_out"),
    [("serving/additions", [*ADDED]), ("feature_engine", ["/events/{dataset}"])],
)
def test_a_worker_without_an_addition_serves_all_else(
    rig, served, copy, addition, left_out
):
    shutil.rmtree(copy / addition)
    row = KEY | {"features": FEATURES}
    with rig.serving(home=rig.second_home()) as (client, _):
        rig.known_to_be_ready(client)
        answer = client.post("/predict", json=row).json()
        assert answer["model_version"] == served.first
        batch = client.post("/predict/batch", json=[row, row]).json()
        assert [answer["probability"]] * 2 == [row["probability"] for row in batch]
        outcome = {"request_id": answer["request_id"], "actual": 1}
        feedback = client.post("/feedback", json=outcome).json()
        assert feedback == {"recorded": 1, "logged": True}
        assert client.get("/health/live").json() == {"live": True}
        assert "gyre_predictions_total" in client.get("/metrics").text
        documented = client.get("/openapi.json").json()["paths"]
        assert {"/predict", "/predict/batch", "/feedback"} <= documented.keys()
        statuses = {
            path: client.post(path, json=body).status_code
            for path, body in ADDED.items()
        }
    assert [path for path in ADDED if statuses[path] == 404] == left_out
    assert [path for path in left_out if path in documented] == []

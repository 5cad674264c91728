"""A version that ONNX cannot score, served by MLflow's pyfunc in a process of its own."""

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from mlflow_server.model.pyfunc import ModelFile
from tests.conftest import wait_until
from tests.faults.conftest import (
    SPEC_TEXT,
    second_server,
    shows,
    workers,
    write_project,
)
from tests.serving.conftest import SPEC
from tests.support.training.factories import isotonic, xgboost_behind_a_scaler
from training.evaluation.metrics import rounded
from training.model.estimators import columns

TRUSTED = ("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier")
UNKNOWN = "sklearn.calibration._CalibratedClassifier"
"""A type that no short name has."""
ONNX_MODEL = "onnx_model"
"""Another model of the same server."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose spec trusts XGBoost's types, and a second model."""
    defaults = 'missing_features = "defaults"'
    native = f'{defaults}\nformat = "native"'
    specs = {
        SPEC.name: SPEC_TEXT.replace(defaults, native),
        ONNX_MODEL: SPEC_TEXT.replace(SPEC.name, ONNX_MODEL),
    }
    write_project(tmp_path, monkeypatch, specs)


def child_of(process):
    """Return the one process that scores for the one worker."""
    (worker,) = workers(process)
    (child,) = workers(worker)
    return child


def predict(client, name=SPEC.name):
    return client.post(f"/models/{name}/predict", json={"customer_id": 4})


@pytest.mark.usefixtures("project")
def test_a_killed_process_of_one_model_does_not_affect_other_models(rig, served):
    """29: the model answers as it was fitted, before and after; untrusted types are refused."""
    days = np.arange(500)
    frame = pd.DataFrame([rig.features] * 500).assign(days_since_last_order=days)
    has_churned = np.random.default_rng(5).integers(0, 500, 500) < days
    estimator = xgboost_behind_a_scaler(SPEC.features)
    fitted = estimator.fit(frame, has_churned.astype(int))
    native = ModelFile.native(fitted, TRUSTED, classes=2)
    version = rig.register(0, model=native, loader=native.loader).version
    rig.promote(rig.register(0.5, name=ONNX_MODEL).version, ONNX_MODEL)
    rig.promote(version)
    with second_server(rig) as (client, process):
        wait_until("one", lambda: predict(client, ONNX_MODEL).status_code == 200)
        wait_until(version, lambda: version in predict(client).json().values())
        check_answers(client, fitted, frame)
        check_that_a_kill_is_survived(client, process)
        check_answers(client, fitted, frame)
    # The spec of this server trusts no more types than those of a short name.
    unknown = make_pipeline(columns(SPEC.inputs), isotonic()).fit(frame, has_churned)
    refused = ModelFile.native(unknown, (UNKNOWN,), classes=2)
    version = rig.register(0, model=refused, loader=refused.loader).version
    rig.promote(version)
    refusal = f"{version} is refused: ModelFailedError: UntrustedTypesFoundException"
    shows(served.client, refusal)
    rig.swap(served.client, served.first)


def check_answers(client, fitted, frame):
    """Ask for many rows at once, and for one."""
    expected = rounded(fitted.predict_proba(frame)[:, 1], SPEC.threshold).tolist()
    body = [{"customer_id": 4, "features": row} for row in frame.to_dict("records")]
    batch = client.post(f"/models/{SPEC.name}/predict/batch", json=body).json()
    assert [answer["probability"] for answer in batch] == expected
    one = client.post(f"/models/{SPEC.name}/predict", json=body[0]).json()
    assert one["probability"] == expected[0]


def check_that_a_kill_is_survived(client, process):
    child = child_of(process)
    refusals = []

    def is_back():
        assert predict(client, ONNX_MODEL).status_code == 200
        answer = predict(client)
        if answer.status_code != 200:
            refusals.append(answer)
        return bool(refusals) and answer.status_code == 200

    child.kill()
    wait_until("its next process", is_back)
    assert {answer.status_code for answer in refusals} == {503}
    assert {answer.headers["retry-after"] for answer in refusals} == {"1"}
    assert "cannot score: its process" in refusals[-1].json()["detail"]
    assert child_of(process).pid != child.pid

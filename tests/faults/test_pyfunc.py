"""A version that ONNX cannot score, served by MLflow's pyfunc in a process of its own."""

import numpy as np
import pandas as pd
import pytest

from mlflow_server.pyfunc import ModelFile
from tests.conftest import wait_until
from tests.faults.conftest import SPEC_TEXT, second_server, workers, write_project
from tests.serving.conftest import SPEC
from tests.training.factories import xgboost_behind_a_scaler
from training.metrics import rounded

TRUSTED = ("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier")
ONNX_MODEL = "onnx_model"
"""Another model of the same server."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose spec trusts XGBoost's types, and a second model."""
    defaults = 'missing_features = "defaults"'
    native = f'{defaults}\nformat = "native"\ntrusted_types = {[*TRUSTED]}'
    specs = {
        SPEC.name: SPEC_TEXT.replace(defaults, native),
        ONNX_MODEL: SPEC_TEXT.replace(SPEC.name, ONNX_MODEL),
    }
    write_project(tmp_path, monkeypatch, specs)


def customers(count):
    chance = np.random.default_rng(5)
    columns = {
        "int64": lambda: chance.integers(0, 300, count),
        "double": lambda: chance.exponential(60, count),
        "string": lambda: chance.choice(["repeat", "loyal"], count),
    }
    frame = pd.DataFrame(
        {name: columns[kind]() for name, kind in SPEC.features.items()}
    )
    churned = frame.days_since_last_order + chance.normal(0, 80, count) > 150
    return frame, churned.astype(int).to_numpy()


def child_of(process):
    """Return the one process that scores for the one worker."""
    (worker,) = workers(process)
    (child,) = workers(worker)
    return child


def predict(client, name=SPEC.name, features=None):
    body = {"customer_id": 4} | ({"features": features} if features else {})
    return client.post(f"/models/{name}/predict", json=body)


@pytest.mark.usefixtures("project")
def test_a_killed_process_of_one_model_does_not_affect_other_models(rig, served):
    """29: the model answers as it was fitted, before and after; untrusted types are refused."""
    frame, churned = customers(500)
    fitted = xgboost_behind_a_scaler(SPEC.features).fit(frame, churned)
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
    # The spec of this server trusts no types.
    refusal = f"{version} is refused: ModelFailedError: UntrustedTypesFoundException"
    wait_until(refusal, lambda: refusal in served.client.get("/status").text)
    rig.swap(served.client, served.first)


def check_answers(client, fitted, frame):
    """Ask for one row at a time, and for many at once."""
    expected = rounded(fitted.predict_proba(frame)[:, 1], SPEC.threshold).tolist()
    rows = frame.to_dict("records")
    answers = [predict(client, features=row).json() for row in rows[:20]]
    assert [answer["probability"] for answer in answers] == expected[:20]
    body = [{"customer_id": 4, "features": row} for row in rows]
    batch = client.post(f"/models/{SPEC.name}/predict/batch", json=body).json()
    assert [answer["probability"] for answer in batch] == expected


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

"""The empty start, and starts without MLflow."""

from __future__ import annotations

import json
import shutil
from typing import Any

from tests.conftest import unused_port


def test_an_empty_start_is_live_not_ready_and_says_why(served: Any) -> None:
    why = "nothing registered yet for customer_churn_model: train one"
    assert served.empty["/health/live"].json() == {"live": True}
    ready = served.empty["/health/ready"]
    assert ready.status_code == 503
    assert ready.json()["resources"]["model customer_churn_model"]["detail"] == why
    assert ready.json()["resources"]["redis"]["ok"]
    for path in ("/predict", "/v1"):
        assert served.empty[path].status_code == 503
        assert served.empty[path].json()["detail"] == why
    assert served.empty["/"].status_code == 200
    assert why in served.empty["/"].text


def test_without_mlflow_the_verified_local_copy_serves_and_an_altered_one_does_not(
    rig: Any, served: Any
) -> None:
    home = rig.folder / "cold"
    for part in ("serving/models", "feast"):
        shutil.copytree(rig.settings.home / part, home / part)
    change = {"home": home, "mlflow_port": unused_port()}
    with rig.serving(**change, serving_port=unused_port()) as (client, process):
        rig.known_to_be_ready(client)
        assert rig.predict(client).json()["model_version"] == served.first
        resources = client.get("/health/ready").json()["resources"]
        assert not resources["mlflow"]["ok"]
        assert "unknown" in client.get("/").text
        process.terminate()
        process.wait(15)
        assert "Application shutdown complete" in (rig.folder / "serving.log").read_text()
    copy = home / "serving" / "models" / "customer_churn_model"
    version = json.loads((copy / "production.json").read_text())["version"]
    model = copy / version / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with rig.serving(**change, serving_port=unused_port()) as (client, _):
        rig.wait_until("a refusal", lambda: "being loaded" not in client.get("/health/ready").text)
        answer = rig.predict(client)
        assert answer.status_code == 503
        assert "model.onnx: sha256 is" in answer.json()["detail"]

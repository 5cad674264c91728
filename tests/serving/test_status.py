"""What a server says of itself to the console: at an empty start, with a version, of all workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.conftest import unused_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_an_empty_start_is_live_not_ready_and_says_why(served: Any) -> None:
    reason = (
        "customer_churn_model has no version in production here yet: "
        "train one, or wait for its copy"
    )
    assert served.empty["/health/live"].json() == {"live": True}
    ready = served.empty["/health/ready"]
    assert ready.status_code == 503
    assert ready.json() == {"ready": False, "not_well": ["model customer_churn_model"]}
    status = served.empty["/status"].json()
    assert status["ready"] is False
    assert status["resources"]["model customer_churn_model"]["detail"] == reason
    assert status["resources"]["redis"]["ok"]
    assert status["models"]["customer_churn_model"]["versions"] == {}
    for path, field in (("/predict", "detail"), ("/v1", "error")):
        assert served.empty[path].status_code == 503
        assert served.empty[path].json()[field] == reason


def test_the_status_names_versions_refusals_and_the_age_of_features(
    rig: Any, served: Any
) -> None:
    status = served.client.get("/status").json()
    model = status["models"][rig.spec.name]
    assert model["versions"] == {"production": served.first}
    assert (model["refused"], model["problem"]) == ({}, None)
    now = datetime.now(UTC)
    assert datetime.fromisoformat(model["watermark"]) < now
    age = now - datetime.fromisoformat(status["started"])
    assert timedelta(0) < age < timedelta(hours=1)
    assert status["resources"]["mlflow"] == {"ok": True, "detail": "answers"}
    assert set(status["counts"]["log_failures"]) == {"predictions", "feedback"}


def test_counts_are_those_of_all_workers_and_a_token_is_needed(
    rig: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret")
    monkeypatch.setenv("GYRE_SERVING_TOKENS_FILE", str(tokens))
    ports = {"mlflow_port": unused_port(), "serving_port": unused_port()}
    with rig.serving(home=tmp_path, serving_workers=2, **ports) as (client, _):
        assert client.get("/status").status_code == 401
        client.headers["authorization"] = "Bearer secret"
        body = {"customer_id": 4}
        for _ in range(20):
            answer = client.post("/predict", json=body, headers={"connection": "close"})
            assert answer.status_code == 503

        def counts() -> Any:
            return client.get("/status").json()["counts"]["requests_refused"]

        wait_until("all of them", lambda: counts() == {"429": 0, "503": 20})

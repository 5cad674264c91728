"""The status of a server: at an empty start, and with a version."""

from datetime import UTC, datetime, timedelta


def test_a_server_without_a_version_is_live_not_ready_and_names_the_reason(served):
    reason = (
        "customer_churn_model has no version in production here yet: "
        "train one, or wait for its copy"
    )
    assert served.empty["/health/live"].json() == {"live": True}
    ready = served.empty["/health/ready"]
    assert ready.status_code == 503
    assert ready.json() == {"ready": False, "not_well": ["model customer_churn_model"]}
    status = served.empty["/status"].json()
    assert status["resources"]["model customer_churn_model"]["detail"] == reason
    assert status["models"]["customer_churn_model"]["versions"] == {}
    for path, field in (("/predict", "detail"), ("/v1", "error")):
        assert served.empty[path].status_code == 503
        assert served.empty[path].json()[field] == reason


def test_the_status_has_versions_refusals_and_the_age_of_features(rig, served):
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

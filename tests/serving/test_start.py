"""The empty start."""

from __future__ import annotations

from typing import Any


def test_an_empty_start_is_live_not_ready_and_says_why(served: Any) -> None:
    why = "nothing registered yet for customer_churn_model: train one"
    assert served.empty["/health/live"].json() == {"live": True}
    ready = served.empty["/health/ready"]
    assert ready.status_code == 503
    assert ready.json()["resources"]["model customer_churn_model"]["detail"] == why
    assert ready.json()["resources"]["redis"]["ok"]
    for path, form in (("/predict", "detail"), ("/v1", "error")):
        assert served.empty[path].status_code == 503
        assert served.empty[path].json()[form] == why

"""Promotions while requests are under way, and scores that are no probability."""

from __future__ import annotations

import time
from typing import Any

from tests.serving.load import under_load


def test_promotions_swap_within_5_s_and_no_request_fails(rig: Any, served: Any) -> None:
    with under_load(served.client) as answers:
        for version in (served.second, served.first, served.second, served.first):
            rig.promote(version)
            promoted = time.monotonic()
            rig.answers_as(served.client, version)
            swapped = time.monotonic()
            assert swapped - promoted < 5
    assert {answer.status for answer in answers} == {200}
    assert {answer.version for answer in answers} == {served.first, served.second}


def test_features_that_score_no_probability_are_422(rig: Any, served: Any) -> None:
    version = rig.register(1.0, score="Log").version  # of the defaults log(0.12 + 1): served
    rig.promote(version)
    rig.answers_as(served.client, version)
    features = rig.features | {"days_since_last_order": -200}  # log(-2 + 1)
    answer = served.client.post("/predict", json={"customer_id": 4, "features": features})
    assert (answer.status_code, "nan" in answer.json()["detail"]) == (422, True)
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)

"""Promotions while requests are under way, and what a version may lack."""

import time

import pytest

from tests.conftest import at_most
from tests.serving.conftest import body_of
from tests.serving.load import under_load


@pytest.mark.timed
def test_promotions_take_effect_within_5_s_and_no_request_fails(rig, served):
    with under_load(served.client) as answers:
        for version in (served.second, served.first, served.second, served.first):
            rig.promote(version)
            promoted = time.monotonic()
            rig.answers_as(served.client, version)
            swapped = time.monotonic()
            assert swapped - promoted < at_most(5)
    assert {answer.status for answer in answers} == {200}
    assert {answer.version for answer in answers} == {served.first, served.second}


def test_a_version_may_have_no_population_and_no_probability_for_some_features(
    rig, served
):
    def ask(days):
        body = body_of("plain", rig.features | {"days_since_last_order": days})
        return served.client.post("/predict", json=body)

    assert ask(500).json()["in_population"] is False
    version = rig.register(1.0, score="Reciprocal", population=None).version
    rig.swap(served.client, version)
    assert ask(500).json()["in_population"] is True
    refused = ask(-200)  # 1 / (-2 + 1)
    assert refused.status_code == 422
    assert "-1.0" in refused.json()["detail"]
    rig.swap(served.client, served.first)

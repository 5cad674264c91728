"""Versions: promoted while requests are under way, what one may lack, and which are refused."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from serving.errors import ModelRefusedError
from tests.conftest import at_most
from tests.serving.conftest import SPEC, body_of, contract, opened_version, tiny_onnx
from tests.support.serving.load import under_load
from tests.support.serving.number_rows import NUMBER, NUMBERS

OTHER = SPEC.model_copy(update={"name": "m"})


@pytest.mark.journey
@pytest.mark.timed
def test_promotions_take_effect_within_5_s_and_no_request_fails(rig, served):
    with under_load(served.client) as answers:
        for version in (served.second, served.first, served.second, served.first):
            rig.promote(version)
            promoted = time.monotonic()
            rig.answers_as(served.client, version)
            assert time.monotonic() - promoted < at_most(5)
    assert {answer.status for answer in answers} == {200}
    assert {answer.version for answer in answers} == {served.first, served.second}


@pytest.mark.journey
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


@pytest.mark.parametrize(
    ("contract", "score", "spec", "reason"),
    [
        (contract(), "Identity", SPEC, r"the defaults score \[-88\.\d+\], not a prob"),
        (NUMBER, "Log", NUMBERS, r"the defaults score \[nan\], not a finite number"),
        (
            contract(),
            "Sigmoid",
            OTHER,
            "expected model m, found customer_churn_model",
        ),
    ],
)
def test_a_version_whose_scores_do_not_fit_or_of_another_model_is_refused(
    tmp_path, contract, score, spec, reason
):
    with pytest.raises(ModelRefusedError, match=reason):
        opened_version(tmp_path, contract, tiny_onnx(-89.0, score), spec)


def test_the_status_has_versions_the_age_of_features_and_the_start(rig, served):
    status = served.client.get("/status").json()
    model = status["models"][rig.spec.name]
    assert model["versions"] == {"production": served.first}
    now = datetime.now(UTC)
    assert datetime.fromisoformat(model["watermark"]) < now
    age = now - datetime.fromisoformat(status["started"])
    assert timedelta(0) < age < timedelta(hours=1)

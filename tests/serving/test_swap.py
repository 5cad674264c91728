"""Promotions while requests are under way, and scores that are no probability."""

from __future__ import annotations

import time
from typing import Any

import onnxruntime as ort
import pytest

from serving.model import LoadedModel, Origin
from serving.model_versions import ModelVersions, Roles
from serving.prediction_log import AppendLog
from serving.repository import Deployment
from tests.conftest import at_most
from tests.serving.conftest import contract, tiny_onnx
from tests.serving.load import under_load


@pytest.mark.timed
def test_promotions_swap_within_5_s_and_no_request_fails(rig: Any, served: Any) -> None:
    with under_load(served.client) as answers:
        for version in (served.second, served.first, served.second, served.first):
            rig.promote(version)
            promoted = time.monotonic()
            rig.answers_as(served.client, version)
            swapped = time.monotonic()
            assert swapped - promoted < at_most(5)
    assert {answer.status for answer in answers} == {200}
    assert {answer.version for answer in answers} == {served.first, served.second}


def test_features_that_score_no_probability_are_422(rig: Any, served: Any) -> None:
    version = rig.register(
        1.0, score="Log"
    ).version  # of the defaults log(0.12 + 1): served
    rig.promote(version)
    rig.answers_as(served.client, version)
    features = rig.features | {"days_since_last_order": -200}  # log(-2 + 1)
    answer = served.client.post(
        "/predict", json={"customer_id": 4, "features": features}
    )
    assert (answer.status_code, "nan" in answer.json()["detail"]) == (422, True)
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)


def test_a_version_without_a_population_answers_everybody_like_one_of_it(
    rig: Any, served: Any
) -> None:
    features = rig.features | {"days_since_last_order": 500}
    body = {"customer_id": 4, "features": features}
    assert served.client.post("/predict", json=body).json()["in_population"] is False
    version = rig.register(1.0, population=None).version
    rig.promote(version)
    rig.answers_as(served.client, version)
    assert served.client.post("/predict", json=body).json()["in_population"] is True
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)


def test_versions_that_may_have_the_same_nulls_share_the_types_of_a_request(
    rig: Any, tmp_path: Any
) -> None:
    """Classes of pydantic are never freed: made anew, each swap would take 0.15 MB for ever."""
    model = Deployment(
        ModelVersions(rig.settings, rig.spec), AppendLog(tmp_path, "predictions")
    )
    session = ort.InferenceSession(tiny_onnx(0.0).SerializeToString())
    made = []
    for version, nullable in (("1", ("a",)), ("2", ("a",)), ("3", ())):
        held = contract().model_copy(update={"nullable": nullable})
        origin = Origin(created=1, digests={})
        loaded = LoadedModel(version, origin, held, session, model.holder.features)
        model.holder.roles = Roles(production=loaded)
        made.append(model.schemas)
    first, second, third = made
    assert first is second
    assert second is not third

"""Specs that are edited while a version serves: it answers on as it was trained."""

import asyncio

import pytest

from core.spec import ModelSpec
from mlflow_server.api.registry import Registry
from serving.prediction_log.append_log import AppendLog
from serving.repository import ModelRepository
from tests.conftest import wait_until
from tests.serving.conftest import (
    FEATURES,
    KNOWN,
    SPEC,
    application,
    body_of,
    client_of,
    tiny_onnx,
)

PATHS = {
    "plain": "/predict",
    "batch": "/predict/batch",
    "v1": f"/v1/models/{SPEC.name}:predict",
    "v2": f"/v2/models/{SPEC.name}/infer",
    "mlflow": "/invocations",
}
MOST_TRIES = 100
BEATS = "better_than_baseline"
NO_SEGMENT = {"segment": None, "gates": [{"metric": "log_loss", "rule": BEATS}]}
NO_CLASS = {"threshold": None, "costs": None}
CLASSES = {
    "task": "multiclass",
    "classes": ("a", "b", "c"),
    "gates": [{"metric": "log_loss", "rule": BEATS}],
    **NO_CLASS,
}
NUMBER = {
    "task": "regression",
    "gates": [{"metric": "mae", "rule": BEATS}],
    "estimators": [{"name": "lines", "type": "ridge"}],
    **NO_CLASS,
}


def features(*, removed="", **changed):
    kinds = {**SPEC.features, **changed}
    kinds.pop(removed, None)
    return kinds


def renamed(old, new):
    names = {old: new}
    return {names.get(name, name): kind for name, kind in SPEC.features.items()}


EDITS = {
    "a feature that was null in training is removed": {"features": features(removed="avg_order_value")},
    "a feature that was null is renamed": {"features": renamed("avg_order_value", "mean_value")},
    "a feature is removed": {"features": features(removed="lifetime_orders")},
    "a feature is added": {"features": features(visits_7d="int64")},
    "a feature has another type": {"features": features(total_orders_30d="double")},
    "a text becomes a number": {"features": features(customer_segment="int64"), "segment": None},
    "features in another order": {"features": dict(reversed(SPEC.features.items()))},
    "another key": {"entity_key": {"shop_id": "string"}},
    "a further key": {"entity_key": {"customer_id": "int64", "shop_id": "string"}},
    "another service": {"feature_service": "churn_v9"},
    "a number is predicted": NUMBER,
    "classes are predicted": CLASSES,
    "another label": {"label": "other"},
    "another population": {"population": {"feature": "lifetime_orders", "below": 1}},
    "a native model": {"serving": {"missing_features": "refuse", "format": "native"}},
}  # fmt: skip


async def all_answers(client):
    """What each protocol answers by key and by features, and what is said of the model.

    On a busy machine Redis may not answer in time, and the default features are scored, which are
    those that are sent: it is asked again.
    """
    scores = await asked_once(client)
    for _ in range(MOST_TRIES):
        by_key = {scores[protocol, "by key"] for protocol in PATHS}
        by_features = {scores[protocol, "by features"] for protocol in PATHS}
        if len(by_key) == 1 and by_key != by_features:
            break
        scores = await asked_once(client)
    return scores


async def asked_once(client):
    scores = {}
    for protocol, path in PATHS.items():
        for row in ({"customer_id": KNOWN}, FEATURES):
            answer = await client.post(path, json=body_of(protocol, row))
            assert answer.status_code == 200, (protocol, row, answer.text)
            name = "by key" if "customer_id" in row else "by features"
            scores[protocol, name] = score_of(answer.json())
    for path in ("/openapi.json", f"/v2/models/{SPEC.name}"):
        answer = await client.get(path)
        assert answer.status_code == 200, (path, answer.text)
    return scores


def score_of(content):
    if isinstance(content, list):
        content = content[0]
    if "outputs" in content:
        return content["outputs"][0]["data"][0]
    if "predictions" in content:
        content = content["predictions"][0]
    return content.get("probability", content.get("score"))


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_spec_changes_no_answer_of_the_version_that_serves(
    rig, served, tmp_path, edit
):
    spec = ModelSpec.model_validate(SPEC.model_dump(mode="json") | EDITS[edit])

    async def check():
        log = AppendLog(tmp_path, "predictions")
        log.open()
        registered = Registry(rig.settings).models()[SPEC.name]
        repository = ModelRepository(rig.settings, log)
        app = application(rig.settings, repository)
        async with client_of(app) as client:
            await load(repository, [SPEC], registered)
            before = await all_answers(client)
            await load(repository, [spec], registered)
            assert await all_answers(client) == before
        restarted = ModelRepository(rig.settings, log)
        app = application(rig.settings, restarted)
        async with client_of(app) as client:
            await load(restarted, [spec], registered)
            assert await all_answers(client) == before
        await repository.close()
        await restarted.close()
        log.close()

    asyncio.run(check())


def test_a_version_of_another_key_is_no_shadow(rig, served, tmp_path):
    version = rig.register(0.1, entity_key={"shop_id": "int64"}).version
    rig.promote(version, role="shadow")

    async def state():
        repository = ModelRepository(rig.settings, AppendLog(tmp_path, "predictions"))
        await load(repository, [SPEC], Registry(rig.settings).models()[SPEC.name])
        (model,) = repository
        await repository.close()
        return model.versions.roles.shadow, model.versions.state

    wait_until(
        "its copy", lambda: f"version {version} is refused" in status(served.client)
    )
    shadow, words = asyncio.run(state())
    rig.release("shadow")
    assert shadow is None
    assert f"version {version} is refused: it cannot be shadow: entity_key is " in words


def test_a_challenger_gets_no_features_that_were_read_as_another_type(rig, served):
    kinds = SPEC.features | {"total_spend_30d": "int64"}
    version = rig.register(
        0.1,
        model=tiny_onnx(0.1, kinds=kinds),
        features=kinds,
        defaults=FEATURES | {"total_spend_30d": 10},
    ).version
    rig.promote(version, role="challenger", percent=99)
    wait_until("its copy", lambda: f'"challenger":"{version}"' in status(served.client))
    body = body_of("plain", FEATURES)
    answers = [served.client.post("/predict", json=body) for _ in range(3)]
    rig.release("challenger")
    wait_until("its end", lambda: '"challenger":' not in status(served.client))
    assert [answer.json()["model_version"] for answer in answers] == [served.first] * 3


def status(client):
    return client.get("/status").text


async def load(repository, specs, registered):
    repository.update(specs)
    for model in repository:
        assert await model.versions.follow(registered) == []
        while model.versions.features.problem is not None:
            await model.versions.features.probe()

"""Answers where the online store lacks a value or a row (where Redis is down: tests/faults)."""

import asyncio
import re

import pytest
from feast.protos.feast.types.Value_pb2 import Value
from redis import Redis

from core.spec import MISSING, Population
from serving.app import create_app
from serving.scoring.matrix import is_in_population
from serving.scoring.rows import Features
from tests.conftest import at_most, wait_until
from tests.serving.conftest import KNOWN, body_of, client_of, contract, place
from tests.support.serving.refusals import PATHS

IS_READ = re.compile("is null|has no row")
"""Of a refusal: Redis was read, and lacks something."""
(VIEW,) = contract().lookup.views
HOLES = 7_000_001
NULLS = 7_000_005
LATE = 7_000_009
"""Customers that the shipped orders do not have."""


def refusing(rig, home, monkeypatch, *customers):
    """Return answers of an application that refuses where features are missing."""
    rig.copy_serving_files(home)
    serving = rig.spec.serving.model_copy(update={"missing_features": "refuse"})
    spec = rig.spec.model_copy(update={"serving": serving})
    monkeypatch.setattr("serving.watcher.load_specs", lambda: [spec])
    app = create_app(rig.settings.model_copy(update={"home": home}))

    async def ask(client, customer):
        while True:
            answer = await rig.predict(client, customer)
            if answer.status_code != 503 or IS_READ.search(answer.text):
                return answer
            await asyncio.sleep(0.05)

    async def run():
        lifespan = app.app.router.lifespan_context(app.app)
        async with lifespan, client_of(app) as client:
            return [await ask(client, customer) for customer in customers]

    return asyncio.run(run())


def test_a_null_is_scored_replaced_by_a_default_or_refused_as_the_spec_says(
    rig, served, tmp_path, monkeypatch
):
    known_key, _ = place(VIEW, KNOWN)
    nulls = ("customer_segment", "lifetime_value", "last_order_us")
    key, fields = place(VIEW, HOLES, *nulls)
    with Redis(port=rig.settings.redis_port) as redis:
        redis.copy(known_key, key)
        redis.hdel(key, *fields)

    features = {}

    def is_read():
        """Whether Redis was in time for an answer."""
        answer = rig.predict(served.client, HOLES)
        assert answer.json()["features_from"] == "defaults"
        features.update(rig.row_of(answer)["features"])
        return features["customer_segment"] == MISSING

    wait_until("features", is_read, at_most(5))
    assert features["lifetime_value"] is None
    (refused,) = refusing(rig, tmp_path, monkeypatch, HOLES)
    assert refused.status_code == 503
    assert "days_since_last_order is null" in refused.json()["detail"]


def test_an_entity_whose_features_are_all_null_is_known(
    rig, served, tmp_path, monkeypatch
):
    known_key, _ = place(VIEW, KNOWN)
    key, fields = place(VIEW, NULLS, *(feature.name for feature in VIEW.features))
    with Redis(port=rig.settings.redis_port) as redis:
        redis.copy(known_key, key)
        redis.hdel(key, *fields)
    answer = rig.predict(served.client, NULLS)
    assert (answer.status_code, answer.json()["features_from"]) == (200, "defaults")
    assert rig.row_of(answer)["entity"] == str(NULLS)
    for protocol, path in PATHS.items():
        body = body_of(protocol, {"customer_id": NULLS})
        assert served.client.post(path, json=body).status_code == 200, protocol
    (refused,) = refusing(rig, tmp_path, monkeypatch, NULLS)
    assert refused.status_code == 503


@pytest.fixture
def two_views(rig, served):
    """A version in production that reads two features from a view which only LATE is in."""
    names = ("lifetime_value", "avg_order_value")
    first = [feature for feature in VIEW.features if feature.name not in names]
    second = [feature for feature in VIEW.features if feature.name in names]
    value = {"name": "value", "prefix": b"value " + VIEW.prefix}
    value_view = VIEW.model_copy(update=value | {"features": tuple(second)})
    views = (VIEW.model_copy(update={"features": tuple(first)}), value_view)
    lookup = contract().lookup.model_copy(update={"views": views})
    version = rig.register(-0.5, lookup=lookup).version
    key, fields = place(value_view, LATE, *names)
    content = Value(double_val=7.5).SerializeToString()
    with Redis(port=rig.settings.redis_port) as redis:
        redis.hset(key, mapping=dict.fromkeys(fields, content))
        rig.swap(served.client, version)
        yield
        rig.swap(served.client, served.first)
        redis.delete(key)


@pytest.mark.usefixtures("two_views")
def test_an_answer_says_that_a_view_has_no_row_of_the_entity(
    rig, served, tmp_path, monkeypatch
):
    answer = rig.predict_online(served.client)
    assert answer.json()["features_from"] == "partly"
    row = rig.row_of(answer)
    assert row["features_from"] == "partly"
    assert row["features"]["lifetime_value"] is None
    assert row["features"]["lifetime_orders"] > 0
    known, late, unknown = refusing(rig, tmp_path, monkeypatch, KNOWN, LATE, LATE + 1)
    assert [known.status_code, late.status_code, unknown.status_code] == [200, 503, 404]
    reason = f"view customer_features has no row of customer_id {LATE}"
    assert late.json()["detail"] == f"no features for a prediction: {reason}"


def test_an_entity_whose_population_is_unknown_is_in_none():
    population = Population(feature="lifetime_orders", below=9)
    version = contract().model_copy(update={"population": population})
    for value, is_member in ((None, False), (-1, False), (8, True), (9, False)):
        features = Features({"lifetime_orders": value}, "request")
        assert is_in_population(version, features) is is_member

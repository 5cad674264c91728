"""Redis that dies, and Redis that accepts and never answers."""

import asyncio
import gc
import statistics
import time
from datetime import UTC, datetime

import pytest
import uvloop

from serving.features.source import FeatureSource
from tests.conftest import at_most, wait_until
from tests.faults.conftest import (
    SPEC_TEXT,
    broken,
    more,
    second_server,
    write_project,
)
from tests.serving.conftest import SPEC, contract
from tests.support.serving.load import under_load
from tests.support.serving.people import online

NEVER_ASKED = {"killed": (555, 777), "hangs": (556, 778)}
LONGEST = 0.25
"""Seconds: 50 ms and scoring, and the machine may be busy."""
MEDIAN = 0.12


def answer_in_time(rig, client, key):
    gc.disable()  # this process's, see tests/support/serving/load.py
    start = time.perf_counter()
    answer = rig.predict(client, key)
    seconds = time.perf_counter() - start
    gc.enable()
    assert seconds < at_most(LONGEST)
    return answer


def is_unready_since(client, began):
    """Wait until the server is not ready, and hold that to the time since Redis broke."""
    left = at_most(2) - time.monotonic() + began
    ready = "/health/ready"
    wait_until("not ready", lambda: client.get(ready).status_code == 503, left)


def is_read_again(rig, client, key):
    """Wait for an answer made of what Redis says: it may take longer than its 50 ms."""
    wait_until(
        f"{key} online",
        lambda: rig.predict(client, key).json().get("features_from") == "online",
    )


@pytest.mark.timed
@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_answers_without_redis_use_the_last_values_then_the_defaults_and_say_so(
    rig, served, how
):
    """1: deadline, `features_from` in answer and log, readiness there and back."""
    client = served.client
    unknown, _ = NEVER_ASKED[how]
    with under_load(client) as answers:
        more(answers)
        with broken(rig, "redis", how):
            began = time.monotonic()
            answer = answer_in_time(rig, client, unknown)
            assert answer.json()["features_from"] == "defaults"
            is_unready_since(client, began)
            redis = client.get("/status").json()["resources"]["redis"]
            assert (redis["ok"], "Redis" in redis["detail"]) == (False, True)
            body = [{"customer_id": 4}, {"customer_id": unknown}]
            batch = client.post("/predict/batch", json=body).json()
            assert [row["features_from"] for row in batch] == ["cache", "defaults"]
            more(answers)
            more(answers)
            ended = time.monotonic()
        rig.known_to_be_ready(client, at_most(5))
        is_read_again(rig, client, unknown)
    assert {a.status for a in answers} == {200}
    during = [a for a in answers if began <= a.asked and a.at <= ended]
    assert len(during) > 50
    assert {a.body["features_from"] for a in during} == {"cache"}
    assert max(a.took for a in answers) < at_most(LONGEST)
    assert statistics.median(a.took for a in during) < at_most(MEDIAN)
    rows = {row["request_id"]: row for row in rig.rows()}
    assert all(rows[a.body["request_id"]]["features_from"] == "cache" for a in during)
    row = rows[answer.json()["request_id"]]
    assert (row["features_from"], row["features"]) == ("defaults", rig.features)


@pytest.fixture
def refusing_project(tmp_path, monkeypatch):
    """A project whose spec says `refuse`, of the servers that the test starts."""
    text = SPEC_TEXT.replace('features = "defaults"', 'features = "refuse"')
    assert text != SPEC_TEXT
    write_project(tmp_path, monkeypatch, {SPEC.name: text})


@pytest.mark.timed
@pytest.mark.usefixtures("refusing_project")
def test_missing_features_are_503_with_retry_after_where_the_spec_says_refuse(
    rig, served
):
    """1: known values and given features still answer."""
    with second_server(rig) as (client, _):
        is_read_again(rig, client, 4)
        for how, (_, unknown) in NEVER_ASKED.items():
            with broken(rig, "redis", how):
                check_that_missing_features_are_refused(rig, client, unknown)
            rig.known_to_be_ready(client, at_most(5))
            is_read_again(rig, client, unknown)


def check_that_missing_features_are_refused(rig, client, unknown):
    began = time.monotonic()
    for _ in range(20):
        refused = answer_in_time(rig, client, unknown)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "no features for a prediction: Redis" in refused.json()["detail"]
    assert rig.predict(client, 4).json()["features_from"] == "cache"
    given = {"customer_id": unknown, "features": rig.features}
    assert client.post("/predict", json=given).json()["features_from"] == "request"
    is_unready_since(client, began)


def test_the_last_known_values_expire_at_their_age_limit(rig):
    """1: the bound on the age of what is known, 300 s and here 10 ms."""

    async def check():
        source = FeatureSource(rig.settings, contract(), cache_seconds=0.01)
        await online(source, [{"customer_id": 4}], datetime.now(UTC))
        with broken(rig, "redis", "hangs"):
            await asyncio.sleep(0.02)
            rows = await source.read([{"customer_id": 4}], [datetime.now(UTC)])
            assert rows == ([None], "cache")
        await source.close()

    uvloop.run(check())

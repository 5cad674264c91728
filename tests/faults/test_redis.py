"""Redis that dies, and Redis that accepts and never answers."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from serving.features import FeatureSource
from tests.conftest import at_most, unused_port
from tests.faults.conftest import broken, workers
from tests.serving.conftest import contract
from tests.serving.load import under_load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

REFUSING = str(Path(__file__).with_name("refusing_server.py"))
NEVER_ASKED = {"killed": (555, 777), "hangs": (556, 778)}
LONGEST, MEDIAN = 0.25, 0.12
"""Seconds: 50 ms and scoring, and the machine may be busy."""
HOWS = pytest.mark.parametrize("how", ["killed", "hangs"])


def timed(client: httpx.Client, key: int) -> tuple[float, httpx.Response]:
    gc.disable()  # this process's, see tests/serving/load.py
    start = time.perf_counter()
    answer = client.post("/predict", json={"customer_id": key})
    took = time.perf_counter() - start
    gc.enable()
    return took, answer


def is_ready(client: httpx.Client) -> bool:
    return client.get("/health/ready").status_code == 200


def is_read_again(rig: Any, client: httpx.Client, key: int) -> None:
    """Wait for an answer made of what Redis says: it may take longer than its 50 ms."""
    rig.wait_until(
        f"{key} online",
        lambda: rig.predict(client, key).json().get("features_from") == "online",
    )


@pytest.mark.timed
@HOWS
def test_answers_keep_coming_from_the_last_values_then_the_defaults_and_say_so(
    rig: Any, served: Any, how: str
) -> None:
    """1: deadline, `features_from` in answer and log, readiness there and back."""
    client, (unknown, _) = served.client, NEVER_ASKED[how]
    with under_load(client) as answers:
        rig.wait_until("requests", lambda: len(answers) > 20)
        with broken(rig, "redis", how):
            began = time.monotonic()
            took, answer = timed(client, unknown)
            assert answer.json()["features_from"] == "defaults"
            assert took < at_most(LONGEST)
            left = at_most(2) - time.monotonic() + began
            rig.wait_until("not ready", lambda: not is_ready(client), left)
            redis = client.get("/status").json()["resources"]["redis"]
            assert (redis["ok"], "Redis" in redis["detail"]) == (False, True)
            body = [{"customer_id": 4}, {"customer_id": unknown}]
            batch = client.post("/predict/batch", json=body).json()
            assert [row["features_from"] for row in batch] == ["cache", "defaults"]
            rig.wait_until(
                "answers meanwhile", lambda: sum(a.asked >= began for a in answers) > 60
            )
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


@pytest.mark.timed
def test_where_the_spec_says_refuse_what_is_not_known_is_503_with_retry_after(
    rig: Any, served: Any
) -> None:
    """1: `refuse`, also by a worker started later; known values and given features still answer."""
    with rig.serving(REFUSING, home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        rig.known_to_be_ready(client)
        (first,) = workers(process)
        first.kill()
        first.wait()
        rig.known_to_be_ready(client)
        is_read_again(rig, client, 4)
        for how, (_, unknown) in NEVER_ASKED.items():
            with broken(rig, "redis", how):
                what_is_not_known_is_refused(rig, client, unknown)
            rig.known_to_be_ready(client, at_most(5))
            is_read_again(rig, client, unknown)


def what_is_not_known_is_refused(rig: Any, client: httpx.Client, unknown: int) -> None:
    began = time.monotonic()
    for _ in range(20):
        took, refused = timed(client, unknown)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "no features for a prediction: Redis" in refused.json()["detail"]
        assert took < at_most(LONGEST)
    assert rig.predict(client, 4).json()["features_from"] == "cache"
    given = {"customer_id": unknown, "features": rig.features}
    assert client.post("/predict", json=given).json()["features_from"] == "request"
    left = at_most(2) - time.monotonic() + began
    rig.wait_until("not ready", lambda: not is_ready(client), left)


@asynccontextmanager
async def opened(rig: Any, **changed: float) -> AsyncIterator[FeatureSource]:
    """What a worker reads through, in this process; it knows customer 4."""
    source = FeatureSource(rig.settings, contract(), **changed)
    await online(source)
    yield source
    await source.close()


async def online(source: FeatureSource) -> None:
    """Read from Redis, which may take longer than its 50 ms."""
    while (await read(source))[1] != "online":
        await asyncio.sleep(0.02)
        await source.probe()


async def read(source: FeatureSource) -> tuple[list[Any], str]:
    return await source.read([{"customer_id": 4}], [datetime.now(UTC)])


@HOWS
def test_the_last_known_values_are_given_up_at_their_age(rig: Any, how: str) -> None:
    """1: the bound on the age of what is known, 300 s and here 10 ms."""

    async def check() -> None:
        async with opened(rig) as source, opened(rig, cache_seconds=0.01) as forgetful:
            with broken(rig, "redis", how):
                (row,), origin = await read(source)
                assert (row is None, origin) == (False, "cache")
                await asyncio.sleep(0.02)
                assert await read(forgetful) == ([None], "cache")
            await online(source)

    uvloop.run(check())


@HOWS
def test_one_late_answer_is_no_outage_and_a_second_one_is(rig: Any, how: str) -> None:
    """1: a failed read opens the circuit and has Redis pinged; readiness turns when that fails."""

    async def check() -> None:
        async with opened(rig) as source:
            with broken(rig, "redis", how):
                await read(source)
                assert "Redis" in str(source.problem)
                assert source.down is None
                while source.down is None:  # noqa: ASYNC110  (nothing tells of it)
                    await asyncio.sleep(0.02)
                assert source.down == source.problem
            await online(source)
            assert (source.down, source.problem) == (None, None)

    uvloop.run(check())

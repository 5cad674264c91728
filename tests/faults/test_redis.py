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
from serving.lookup import OPENING_SECONDS
from tests.conftest import unused_port
from tests.faults.conftest import broken, workers
from tests.serving.conftest import contract
from tests.serving.load import under_load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

REFUSING = str(Path(__file__).with_name("refusing_server.py"))
NEVER_ASKED = {"killed": 555, "hangs": 556}
CACHE_SECONDS = 1.0
LONGEST, MEDIAN = 0.25, 0.12
"""Seconds; 50 ms and scoring on a quiet machine, this one may be busy."""
pytestmark = pytest.mark.parametrize("how", ["killed", "hangs"])


def timed(client: httpx.Client, key: int) -> tuple[float, httpx.Response]:
    gc.disable()  # this process's, see tests/serving/load.py
    start = time.perf_counter()
    answer = client.post("/predict", json={"customer_id": key})
    took = time.perf_counter() - start
    gc.enable()
    return took, answer


def is_ready(client: httpx.Client) -> bool:
    return client.get("/health/ready").status_code == 200


def test_answers_keep_coming_from_the_last_values_then_the_defaults_and_say_so(
    rig: Any, served: Any, how: str
) -> None:
    """1: deadline, `features_from` in answer and log, readiness there and back."""
    client, unknown = served.client, NEVER_ASKED[how]
    with under_load(client) as answers:
        rig.wait_until("requests", lambda: len(answers) > 20)
        with broken(rig, "redis", how):
            began = time.monotonic()
            took, answer = timed(client, unknown)
            assert answer.json()["features_from"] == "defaults"
            assert took < LONGEST
            rig.wait_until("not ready", lambda: not is_ready(client), 2 - time.monotonic() + began)
            redis = client.get("/health/ready").json()["resources"]["redis"]
            assert (redis["ok"], "Redis" in redis["detail"]) == (False, True)
            body = [{"customer_id": 4}, {"customer_id": unknown}]
            batch = client.post("/predict/batch", json=body).json()
            assert [row["features_from"] for row in batch] == ["cache", "defaults"]
            rig.wait_until("answers meanwhile", lambda: sum(a.asked >= began for a in answers) > 60)
            ended = time.monotonic()
        rig.known_to_be_ready(client, 5)
        assert timed(client, unknown)[1].json()["features_from"] == "online"
    assert {a.status for a in answers} == {200}
    during = [a for a in answers if began <= a.asked and a.at <= ended]
    assert len(during) > 50
    assert {a.body["features_from"] for a in during} == {"cache"}
    assert max(a.took for a in answers) < LONGEST
    assert statistics.median(a.took for a in during) < MEDIAN
    rows = {row["request_id"]: row for row in rig.rows()}
    assert all(rows[a.body["request_id"]]["features_from"] == "cache" for a in during)
    row = rows[answer.json()["request_id"]]
    assert (row["features_from"], row["features"]) == ("defaults", rig.features)


def test_where_the_spec_says_refuse_what_is_not_known_is_503_with_retry_after(
    rig: Any, served: Any, how: str
) -> None:
    """1: `refuse`, also by a worker started later; known values and given features still answer."""
    given = {"customer_id": 777, "features": rig.features}
    with rig.serving(REFUSING, home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        rig.known_to_be_ready(client)
        (first,) = workers(process)
        first.kill()
        first.wait()
        rig.known_to_be_ready(client)
        assert timed(client, 4)[1].json()["features_from"] == "online"
        with broken(rig, "redis", how):
            began = time.monotonic()
            for _ in range(20):
                took, refused = timed(client, 777)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert "no features for a prediction: Redis" in refused.json()["detail"]
                assert took < LONGEST
            assert timed(client, 4)[1].json()["features_from"] == "cache"
            assert client.post("/predict", json=given).json()["features_from"] == "request"
            rig.wait_until("not ready", lambda: not is_ready(client), 2 - time.monotonic() + began)
        rig.known_to_be_ready(client, 5)
        assert timed(client, 777)[1].json()["features_from"] == "online"


@asynccontextmanager
async def opened(rig: Any) -> AsyncIterator[FeatureSource]:
    """What a worker reads through, in this process; it knows customer 4, for CACHE_SECONDS."""
    source = FeatureSource(rig.settings, contract(), cache_seconds=CACHE_SECONDS)
    await source.probe()
    assert (await read(source))[1] == "online"
    yield source
    await source.close()


async def read(source: FeatureSource) -> tuple[list[Any], str]:
    return await source.read([{"customer_id": 4}], [datetime.now(UTC)])


def test_the_last_known_values_are_given_up_at_their_age(rig: Any, how: str) -> None:
    """1: the bound on the age of what is known, here 1 s in place of 300 s."""

    async def check() -> None:
        async with opened(rig) as source:
            known = time.monotonic()
            (row,), _ = await read(source)
            with broken(rig, "redis", how):
                began = time.monotonic()
                found, origin = await read(source)
                assert time.monotonic() - began < LONGEST
                assert (found, origin, row is None) == ([row], "cache", False)
                while found == [row]:
                    assert time.monotonic() - began < 5
                    found, origin = await read(source)
                assert time.monotonic() - known >= CACHE_SECONDS
                assert (found, origin) == ([None], "cache")
            await source.probe()
            assert (await read(source))[1] == "online"

    uvloop.run(check())


def test_one_late_answer_is_no_outage_and_a_second_one_is(rig: Any, how: str) -> None:
    """1: a failed read opens the circuit and has Redis pinged; readiness turns when that fails."""

    async def check() -> None:
        async with opened(rig) as source:
            with broken(rig, "redis", how):
                await read(source)
                assert "Redis" in str(source.problem)
                assert source.down is None
                began = time.monotonic()
                while source.down is None:
                    assert time.monotonic() - began < OPENING_SECONDS + 2
                    await asyncio.sleep(0.02)
                assert source.down == source.problem
            await source.probe()
            assert (source.down, source.problem) == (None, None)

    uvloop.run(check())

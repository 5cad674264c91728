"""Events while a worker, Redis or the consumer fails."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from feature_repo.datasets import load_dataset
from feature_repo.quarantine import quarantine_table
from tests.conftest import unused_port
from tests.serving.test_events import (  # noqa: F401  (a fixture among them)
    NEW,
    STREAM,
    URL,
    accepts,
    features,
    order,
    raw,
    soon,
)

if TYPE_CHECKING:
    from tests.serving.conftest import Rig, Served


def test_acknowledged_events_of_a_killed_worker_land_once(
    rig: Rig,
    served: Served,
    features: Any,  # noqa: F811
) -> None:
    with rig.consuming():
        pass  # it says what an event is
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (client, process):
        sent = [client.post(URL, json=order(400 + n, NEW + 4)).status_code for n in range(5)]
        process.kill()
    assert sent == [202] * 5
    accepts(served, order(405, NEW + 4))
    with rig.consuming():
        soon(lambda: features(NEW + 4), 6)
    assert sorted(n for n in raw(rig) if 400 <= n < 500) == [400, 401, 402, 403, 404, 405]


@pytest.mark.nightly
def test_a_consumer_that_is_killed_again_and_again_takes_each_event_exactly_once(
    rig: Rig,
    served: Served,
    features: Any,  # noqa: F811
) -> None:
    """Killed at moments drawn at random within a batch: before, at and after each of its steps."""
    moments, total = random.Random(1), 0
    for _ in range(6):
        with rig.consuming() as process:
            until = time.monotonic() + moments.uniform(0.05, 1.2)
            while time.monotonic() < until:
                total += 1
                accepts(served, order(10_000 + total, NEW + 6))
            process.send_signal(signal.SIGKILL)
    with rig.consuming():
        soon(lambda: features(NEW + 6), total, 60)
        spent = features(NEW + 6, "lifetime_value")
    assert spent == 10.0 * total
    assert sorted(n for n in raw(rig) if n > 10_000) == [10_000 + n for n in range(1, total + 1)]


def test_while_redis_is_down_events_are_503_and_what_was_acknowledged_lands(
    rig: Rig,
    served: Served,
    features: Any,  # noqa: F811
) -> None:
    assert rig.redis
    with rig.consuming():
        for n in range(5):
            accepts(served, order(500 + n, NEW + 5))
        rig.redis.kill()
        rig.redis.wait()
        try:
            start = time.perf_counter()
            answer = served.client.post(URL, json=order(505, NEW + 5))
            assert time.perf_counter() < start + 3
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        finally:
            rig.start_redis()
        accepts(served, order(506, NEW + 5))
        soon(
            lambda: sorted(n for n in raw(rig) if 500 <= n < 510),
            [500, 501, 502, 503, 504, 506],
            30,
        )
        soon(lambda: features(NEW + 5), 6, 30)


def test_a_redis_that_hangs_is_503_within_seconds(rig: Rig, served: Served) -> None:
    assert rig.redis
    rig.redis.send_signal(signal.SIGSTOP)
    try:
        start = time.perf_counter()
        answer = served.client.post(URL, json=order(520, NEW + 5))
        assert time.perf_counter() < start + 5
        assert answer.status_code == 503
    finally:
        rig.redis.send_signal(signal.SIGCONT)
    soon(lambda: served.client.post(URL, json=order(521, NEW + 5)).status_code, 202)


def test_an_entry_that_nobody_can_read_goes_to_quarantine_once(rig: Rig, served: Served) -> None:
    def aside() -> int:
        rows = quarantine_table(rig.settings, load_dataset("orders")).read().to_pylist()
        return sum("poison" in row["row"] for row in rows)

    with Redis.from_url(rig.settings.redis_address) as redis:
        redis.xadd(STREAM, {"events": "poison"})
    accepts(served, order(700, NEW + 8))
    for _ in range(2):
        with rig.consuming():
            soon(lambda: 700 in raw(rig), True, 30)
            soon(aside, 1)

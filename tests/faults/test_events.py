"""Events while a worker, Redis or the consumer fails."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.quarantine import quarantine_table
from tests.conftest import at_most, unused_port
from tests.serving.test_events import NEW, URL, accepts, order, soon

if TYPE_CHECKING:
    from tests.serving.conftest import Rig, Served


def raw(rig: Rig) -> dict[int, float]:
    """Return the values of the new orders in the raw table, by number."""
    rows = raw_table(rig.settings, load_dataset("orders")).read().to_pylist()
    assert len(rows) == len({row["order_id"] for row in rows})
    return {
        row["order_id"] - NEW: row["dollar_value"]
        for row in rows
        if row["order_id"] >= NEW
    }


@pytest.fixture
def features(rig: Rig, served: Served) -> Any:
    """Return a feature that the server scores a customer with; None: it knows no such customer."""

    def feature(customer: int, name: str = "lifetime_orders") -> Any:
        answer = rig.predict_online(served.client, customer)
        if answer.status_code == 404:
            return None
        return rig.row_of(answer)["features"][name]

    return feature


@pytest.mark.timed
def test_events_are_refused_or_land_once_whatever_dies(
    rig: Rig,
    served: Served,
    features: Any,
) -> None:
    """24, 28: Redis killed and hanging, a poisonous entry; a worker killed without a consumer."""
    with rig.consuming():
        events_are_503_while_redis_is_down_and_what_was_acknowledged_lands(
            rig, served, features
        )
        a_redis_that_hangs_is_503_within_seconds(rig, served, features)
        with Redis.from_url(rig.settings.redis_address) as redis:
            redis.xadd("gyre:events:orders", {"events": "poison"})
        soon(lambda: poisonous(rig), 1)
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        for number in range(400, 405):
            event = order(number, NEW + 4)
            soon(lambda given=event: client.post(URL, json=given).status_code, 202)
        process.kill()
    accepts(served, order(405, NEW + 4))
    with rig.consuming():
        soon(lambda: features(NEW + 4), 6)
    assert landed(rig, 400) == [400, 401, 402, 403, 404, 405]
    assert poisonous(rig) == 1


def landed(rig: Rig, first: int) -> list[int]:
    """Numbers of the orders in the table, of the hundred that begins with `first`."""
    return sorted(number for number in raw(rig) if first <= number < first + 100)


def poisonous(rig: Rig) -> int:
    """Rows in quarantine that nobody can read."""
    rows = quarantine_table(rig.settings, load_dataset("orders")).read().to_pylist()
    return sum("poison" in row["row"] for row in rows)


def events_are_503_while_redis_is_down_and_what_was_acknowledged_lands(
    rig: Rig,
    served: Served,
    features: Any,
) -> None:
    assert rig.redis
    for number in range(500, 505):
        accepts(served, order(number, NEW + 5))
    rig.redis.kill()
    rig.redis.wait()
    try:
        start = time.perf_counter()
        answer = served.client.post(URL, json=order(505, NEW + 5))
        assert time.perf_counter() < start + at_most(3)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    finally:
        rig.start_redis()
    event = order(506, NEW + 5)
    soon(lambda: served.client.post(URL, json=event).status_code, 202)
    soon(lambda: features(NEW + 5), 6)
    assert landed(rig, 500) == [500, 501, 502, 503, 504, 506]


def a_redis_that_hangs_is_503_within_seconds(
    rig: Rig,
    served: Served,
    features: Any,
) -> None:
    assert rig.redis
    rig.redis.send_signal(signal.SIGSTOP)
    try:
        start = time.perf_counter()
        answer = served.client.post(URL, json=order(600, NEW + 7))
        assert time.perf_counter() < start + at_most(5)
        assert answer.status_code == 503
    finally:
        rig.redis.send_signal(signal.SIGCONT)
    event = order(601, NEW + 8)
    soon(lambda: served.client.post(URL, json=event).status_code, 202)
    soon(lambda: features(NEW + 8), 1)


@pytest.mark.nightly
def test_a_consumer_that_is_killed_again_and_again_takes_each_event_exactly_once(
    rig: Rig,
    served: Served,
    features: Any,
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
        soon(lambda: features(NEW + 6), total)
        spent = features(NEW + 6, "lifetime_value")
    assert spent == 10.0 * total
    assert sorted(n for n in raw(rig) if n > 10_000) == [
        10_000 + n for n in range(1, total + 1)
    ]

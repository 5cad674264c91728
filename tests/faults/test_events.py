"""Events while a worker, Redis or the consumer fails."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.quarantine import quarantine_table
from tests.conftest import at_most
from tests.faults.conftest import broken, second_server
from tests.serving.test_events import NEW, URL, accepts, order, soon

if TYPE_CHECKING:
    from tests.serving.conftest import Rig


def raw(rig: Rig) -> dict[int, float]:
    """Return the values of the new orders in the raw table, by number."""
    rows = raw_table(rig.settings, load_dataset("orders")).read().to_pylist()
    assert len(rows) == len({row["order_id"] for row in rows})
    values = {row["order_id"] - NEW: row["dollar_value"] for row in rows}
    return {number: value for number, value in values.items() if number >= 0}


def landed(rig: Rig, first: int) -> list[int]:
    """Numbers of the orders in the table, of the hundred that begins with `first`."""
    return sorted(number for number in raw(rig) if first <= number < first + 100)


def unreadable_rows(rig: Rig) -> int:
    rows = quarantine_table(rig.settings, load_dataset("orders")).read().to_pylist()
    return sum("poison" in row["row"] for row in rows)


@pytest.fixture
def features(rig, served):
    """Return a feature that the server scores a customer with; None: it knows no such customer."""

    def feature(customer: int, name: str = "lifetime_orders") -> Any:
        answer = rig.predict_online(served.client, customer)
        if answer.status_code == 404:
            return None
        return rig.row_of(answer)["features"][name]

    return feature


@pytest.mark.timed
def test_an_event_is_refused_or_lands_once_whatever_dies(rig, served, features):
    """24, 28: Redis is killed and hangs, an entry is unreadable, a worker is killed."""
    with rig.consuming():
        check_a_killed_redis(rig, served, features)
        check_a_redis_that_hangs(rig, served, features)
        with Redis.from_url(rig.settings.redis_address) as redis:
            redis.xadd("gyre:events:orders", {"events": "poison"})
        soon(lambda: unreadable_rows(rig), 1)
    with second_server(rig) as (client, process):
        for number in range(400, 405):
            event = order(number, NEW + 4)
            soon(lambda given=event: client.post(URL, json=given).status_code, 202)
        process.kill()
    accepts(served, order(405, NEW + 4))
    with rig.consuming():
        soon(lambda: features(NEW + 4), 6)
    assert landed(rig, 400) == [400, 401, 402, 403, 404, 405]
    assert unreadable_rows(rig) == 1


def check_a_killed_redis(rig, served, features):
    for number in range(500, 505):
        accepts(served, order(number, NEW + 5))
    with broken(rig, "redis", "killed"):
        start = time.perf_counter()
        answer = served.client.post(URL, json=order(505, NEW + 5))
        assert time.perf_counter() < start + at_most(3)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    event = order(506, NEW + 5)
    soon(lambda: served.client.post(URL, json=event).status_code, 202)
    soon(lambda: features(NEW + 5), 6)
    assert landed(rig, 500) == [500, 501, 502, 503, 504, 506]


def check_a_redis_that_hangs(rig, served, features):
    with broken(rig, "redis", "hangs"):
        start = time.perf_counter()
        answer = served.client.post(URL, json=order(600, NEW + 7))
        assert time.perf_counter() < start + at_most(5)
        assert answer.status_code == 503
    event = order(601, NEW + 8)
    soon(lambda: served.client.post(URL, json=event).status_code, 202)
    soon(lambda: features(NEW + 8), 1)


@pytest.mark.nightly
def test_a_consumer_that_is_killed_again_and_again_takes_each_event_exactly_once(
    rig, served, features
):
    """Killed at moments drawn at random within a batch: before, at and after each of its steps."""
    moments = random.Random(1)
    total = 0
    for _ in range(6):
        with rig.consuming() as process:
            until = time.monotonic() + moments.uniform(0.05, 1.2)
            while time.monotonic() < until:
                total += 1
                accepts(served, order(10_000 + total, NEW + 6))
            process.kill()
    with rig.consuming():
        soon(lambda: features(NEW + 6), total)
        assert features(NEW + 6, "lifetime_value") == 10.0 * total
    numbers = sorted(number for number in raw(rig) if number > 10_000)
    assert numbers == [10_000 + number for number in range(1, total + 1)]

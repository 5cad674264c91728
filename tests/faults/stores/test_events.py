"""Events while a worker, Redis or the consumer fails."""

import random
import time

import pytest
from redis import Redis

from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.offline.raw import raw_table
from feature_repo.datasets import load_dataset
from tests.conftest import at_most
from tests.faults.conftest import broken, second_server
from tests.support.serving.event_requests import (  # noqa: F401  (features: a fixture)
    NEW,
    URL,
    accepts,
    features,
    order,
    soon,
)

ORDERS = load_dataset("orders")


def landed(rig, first, count=100):
    """Numbers of the orders in the raw table, of so many that begin with `first`."""
    numbers = raw_table(rig.settings, ORDERS).read()["order_id"].to_pylist()
    assert len(numbers) == len(set(numbers))
    return sorted({*range(first, first + count)} & {key - NEW for key in numbers})


def unreadable_rows(rig):
    rows = quarantine_table(rig.settings, ORDERS).read()["row"].to_pylist()
    return sum("poison" in row for row in rows)


@pytest.mark.timed
def test_an_event_is_refused_or_lands_once_during_any_failure(rig, served, features):
    """24, 28: Redis is killed and hangs, an entry is unreadable, a worker is killed."""
    with rig.consuming():
        for number in range(500, 505):
            accepts(served, order(number, NEW + 5))
        check_a_broken_redis(rig, served, features, "killed", 3, 505)
        soon(lambda: features(NEW + 5), 5)
        assert landed(rig, 500) == [500, 501, 502, 503, 504, 506]
        check_a_broken_redis(rig, served, features, "hangs", 5, 600)
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


def check_a_broken_redis(rig, served, features, how, seconds, number):
    customer = NEW + number
    with broken(rig, "redis", how):
        start = time.perf_counter()
        answer = served.client.post(URL, json=order(number, customer))
        assert time.perf_counter() < start + at_most(seconds)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    event = order(number + 1, customer + 1)
    soon(lambda: served.client.post(URL, json=event).status_code, 202)
    soon(lambda: features(customer + 1), 1)


@pytest.mark.nightly
def test_a_repeatedly_killed_consumer_processes_each_event_exactly_once(
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
    numbers = range(10_001, 10_001 + total)
    assert landed(rig, 10_001, 1_000_000) == [*numbers]

"""`POST /events/orders`: on the stream before the answer, landed and online soon after."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from statistics import median

import psutil
import pytest
from redis import Redis

from feature_engine.events.redis_broker import MAX_ENTRIES
from feature_engine.ingest.pipeline import ingest
from tests.conftest import at_most
from tests.support.serving.event_requests import (
    NEW,
    URL,
    accepts,
    features,  # noqa: F401  (a fixture)
    order,
    soon,
)


def seconds_until_counted(served, features, number, customer):
    """Send an order; return after how long the customer is scored with it."""
    orders = features(customer) or 0
    start = time.perf_counter()
    accepts(served, order(number, customer))
    soon(lambda: features(customer), orders + 1)
    return time.perf_counter() - start


@pytest.mark.journey
@pytest.mark.timed
def test_an_order_changes_the_next_prediction_within_a_second_also_during_an_ingest(
    rig, served, features, consumer
):
    seconds = [
        seconds_until_counted(served, features, customer, customer)
        for customer in range(100, 110)
    ]
    busy_seconds = []
    with ThreadPoolExecutor(1) as threads:
        now = datetime.now(UTC)
        work = threads.submit(ingest, rig.settings, "orders", now, full=True)
        while not work.done():
            number = 1_000 + len(busy_seconds)
            delay = seconds_until_counted(served, features, number, NEW + 7)
            busy_seconds.append(delay)
        work.result()
    assert features(NEW + 7) == len(busy_seconds)
    for name, times in (("alone", seconds), ("during an ingest", busy_seconds)):
        print(f"\n{name}: median {median(times):.2f} s, slowest {max(times):.2f} s")  # noqa: T201
        assert median(times) < at_most(1)


@pytest.mark.timed
def test_a_thousand_events_of_new_customers_are_online_within_three_seconds(
    served, features, consumer
):
    events = [order(2_000 + n, NEW + 10 + n % 50) for n in range(1_000)]
    assert features(NEW + 59) is None
    start = time.perf_counter()
    accepts(served, events, 1_000)
    soon(lambda: features(NEW + 59), 20)
    seconds = time.perf_counter() - start
    memory = psutil.Process(consumer.pid).memory_full_info().pss
    print(f"\n1,000 events online: {seconds:.2f} s")  # noqa: T201
    print(f"the consumer's memory (PSS): {memory / 1e6:.0f} MB")  # noqa: T201
    assert seconds < at_most(3)


WRONG = [
    ({"extra": 1}, "Extra"),
    ({"order_id": "1"}, "integer"),
    ({"order_id": 2**63}, "less than"),
    ({"number_of_cds": 1.5}, "integer"),
    ({"dollar_value": "5"}, "number"),
    ({"order_ts": "2026-11-20T10:00:00"}, "timezone"),
    ({"order_ts": 1_700_000_000}, "datetime"),
    ({"order_ts": "2999-01-01T00:00:00Z"}, "future"),
    ({"order_ts": "0001-01-01T00:00:00+14:00"}, "0002-01-01"),
]


def test_a_request_with_a_wrong_event_is_refused_with_the_name_of_the_field(
    rig, served, consumer
):
    def last_id():
        with Redis.from_url(rig.settings.redis_address) as redis:
            return redis.xinfo_stream("gyre:events:orders")["last-generated-id"]

    before = last_id()
    for change, reason in WRONG:
        event = order(301, 1) | change
        for body in (event, [order(300, 1), event]):
            answer = served.client.post(URL, json=body)
            assert answer.status_code == 422
            assert next(iter(change)) in answer.text
            assert reason in answer.text
    missing = order(300, 1)
    del missing["dollar_value"]
    assert "dollar_value" in served.client.post(URL, json=missing).text
    assert served.client.post(URL, json=[]).status_code == 422
    many = [order(n, 1) for n in range(1_001)]
    assert served.client.post(URL, json=many).status_code == 413
    assert served.client.post(URL, content=b" " * 1_000_001).status_code == 413
    unknown = served.client.post("/events/refunds", json={})
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "no dataset 'refunds': there is orders"
    assert last_id() == before


def test_a_full_stream_answers_503_and_accepts_no_event(rig, served, consumer):
    with Redis.from_url(rig.settings.redis_address) as redis:
        pipe = redis.pipeline()
        pipe.hset("gyre:events", "full", redis.hget("gyre:events", "orders"))
        for _ in range(MAX_ENTRIES):
            pipe.xadd("gyre:events:full", {"events": b"[]"})
        pipe.execute()
        answer = served.client.post("/events/full", json=order(320, 1))
        count = redis.xlen("gyre:events:full")
        redis.delete("gyre:events:full")
        redis.hdel("gyre:events", "full")
    # As the consumer withdraws a dataset that is gone.
    assert served.client.post("/events/full", json=order(320, 1)).status_code == 404
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "gyre consume" in answer.json()["detail"]
    assert count == MAX_ENTRIES

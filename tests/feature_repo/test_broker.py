"""The broker on a Redis of its own: what waits, how much may wait, and how often it was tried."""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from core.errors import BrokerUnavailableError
from feature_repo import broker
from feature_repo.broker import (
    EventSchema,
    Intake,
    Stream,
    consumer_lags,
)
from tests.conftest import new_settings, redis_server

SCHEMA = EventSchema(
    dataset="orders",
    columns={"order_id": "int64", "at": "timestamp[us, tz=UTC]"},
    required=["order_id", "at"],
    event_time="at",
)
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def redis_settings(tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("redis"))
    with redis_server(settings.redis_port, settings.home):
        yield settings


@pytest.fixture
def settings(redis_settings):
    """An installation whose Redis is empty."""
    with Redis.from_url(redis_settings.redis_address) as redis:
        redis.flushall()
    return redis_settings


def consumer(settings):
    stream = Stream(settings, "test")
    stream.declare(SCHEMA)
    return closing(stream)


def send(settings, at, events="[]"):
    """Put a request on the stream as if it had come at this moment."""
    with Redis.from_url(settings.redis_address) as redis:
        entry_id = f"{int(at.timestamp() * 1000)}-0"
        redis.xadd("gyre:events:orders", {"events": events}, id=entry_id)


def put(settings, *requests):
    """Put requests on the stream as serving does."""

    async def put_all():
        intake = Intake(settings)
        try:
            for events in requests:
                await intake.put("orders", events)
        finally:
            await intake.close()

    asyncio.run(put_all())


def test_the_lag_counts_what_is_not_acknowledged_from_the_oldest_on(
    settings,
):
    assert consumer_lags(settings) == {}
    with consumer(settings) as stream:
        assert consumer_lags(settings) == {"orders": (0, None)}
        for seconds in (3_600, 90, 30):
            send(settings, NOW - timedelta(seconds=seconds))
        entries = stream.read("orders")
        assert stream.read("orders") == entries
        (lag,) = consumer_lags(settings).values()
        assert (lag.entries, lag.seconds(NOW)) == (3, 3_600.0)
        stream.acknowledge("orders", [entries[0], entries[2]])
        (lag,) = consumer_lags(settings).values()
        assert (lag.entries, lag.seconds(NOW)) == (1, 90.0)
        assert stream.read("orders") == entries[1:2]


def test_a_stream_takes_no_more_bytes_than_it_may(settings, monkeypatch):
    """Small requests come first: Redis' own estimate is made of the first five."""
    monkeypatch.setattr(broker, "MAX_BYTES", 1_000_000)
    small = [b"[]"] * 20
    large = [b" " * 100_000] * 9
    with consumer(settings) as stream:
        put(settings, *small, *large)
        with pytest.raises(
            BrokerUnavailableError, match=r"orders: 29 requests \(1\.0 MB\) wait"
        ):
            put(settings, large[0])
        put(settings, small[0])
        stream.acknowledge("orders", stream.read("orders"))
        put(settings, large[0])
        assert consumer_lags(settings)["orders"].entries == 1


def test_deliveries_are_counted_until_the_entry_is_acknowledged(
    settings,
):
    """A restart of the consumer does not forget them."""
    for seconds in (0, 1):
        send(settings, NOW + timedelta(seconds=seconds))
    for count in (1, 2):
        with consumer(settings) as stream:
            entries = stream.read("orders")
            for _ in range(2):
                assert [stream.deliveries("orders", entry) for entry in entries] == [
                    count,
                    count,
                ]
    with consumer(settings) as stream:
        stream.acknowledge("orders", entries[:1])
        assert stream.read("orders") == entries[1:]
        assert stream.deliveries("orders", entries[1]) == 3

"""The broker on a real Redis: what waits, and how much may wait."""

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from core.errors import BrokerUnavailableError
from feature_engine.events import redis_broker
from feature_engine.events.broker import consumer_lags
from feature_engine.events.interface import Record
from feature_engine.events.redis_broker import RedisIntake
from tests.support.feature_engine.installation import Events
from tests.support.feature_engine.shop import ORDERS

NOW = datetime.now(UTC).replace(microsecond=0)


def put(settings, *requests):
    """Put requests on the stream as serving does."""

    async def put_all():
        intake = RedisIntake(settings)
        try:
            for events in requests:
                await intake.put("orders", [Record(b"", events)])
        finally:
            await intake.close()

    asyncio.run(put_all())


def test_the_lag_counts_unacknowledged_entries_and_the_age_of_the_oldest(applied):
    assert consumer_lags(applied) == {}
    with closing(Events(applied, ORDERS)) as events:
        assert consumer_lags(applied) == {"orders": (0, None)}
        for seconds in (3_600, 90, 30):
            events.sends(NOW - timedelta(seconds=seconds))
        entries = events.stream.read()
        lag = consumer_lags(applied)["orders"]
        assert (lag.entries, lag.seconds(NOW)) == (3, 3_600.0)
        events.stream.acknowledge([entries[0], entries[2]])
        lag = consumer_lags(applied)["orders"]
        assert (lag.entries, lag.seconds(NOW)) == (1, 90.0)
        assert events.stream.read() == entries[1:2]


def test_a_stream_takes_no_more_bytes_than_its_limit(applied, monkeypatch):
    """Small requests come first: Redis' own estimate is made of the first five."""
    monkeypatch.setattr(redis_broker, "MAX_BYTES", 1_000_000)
    small = [b"[]"] * 20
    large = [b" " * 100_000] * 9
    with closing(Events(applied, ORDERS)) as events:
        put(applied, *small, *large)
        with pytest.raises(
            BrokerUnavailableError, match=r"orders: 29 requests \(1\.0 MB\) wait"
        ):
            put(applied, large[0])
        put(applied, small[0])
        events.stream.acknowledge(events.stream.read())
        put(applied, large[0])
        assert consumer_lags(applied)["orders"].entries == 1

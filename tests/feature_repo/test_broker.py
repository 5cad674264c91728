"""The broker on a real Redis: what waits, how much may wait, and how often it was tried."""

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from core.errors import BrokerUnavailableError
from feature_repo import broker
from feature_repo.broker import Intake, consumer_lags
from tests.feature_repo.conftest import Events
from tests.feature_repo.test_ingest import ORDERS

NOW = datetime.now(UTC).replace(microsecond=0)


def consumer(settings):
    return closing(Events(settings, ORDERS))


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


def test_the_lag_counts_unacknowledged_entries_and_the_age_of_the_oldest(applied):
    assert consumer_lags(applied) == {}
    with consumer(applied) as events:
        assert consumer_lags(applied) == {"orders": (0, None)}
        for seconds in (3_600, 90, 30):
            events.sends(NOW - timedelta(seconds=seconds))
        entries = events.stream.read("orders")
        assert events.stream.read("orders") == entries
        (lag,) = consumer_lags(applied).values()
        assert (lag.entries, lag.seconds(NOW)) == (3, 3_600.0)
        events.stream.acknowledge("orders", [entries[0], entries[2]])
        (lag,) = consumer_lags(applied).values()
        assert (lag.entries, lag.seconds(NOW)) == (1, 90.0)
        assert events.stream.read("orders") == entries[1:2]


def test_a_stream_takes_no_more_bytes_than_its_limit(applied, monkeypatch):
    """Small requests come first: Redis' own estimate is made of the first five."""
    monkeypatch.setattr(broker, "MAX_BYTES", 1_000_000)
    small = [b"[]"] * 20
    large = [b" " * 100_000] * 9
    with consumer(applied) as events:
        put(applied, *small, *large)
        with pytest.raises(
            BrokerUnavailableError, match=r"orders: 29 requests \(1\.0 MB\) wait"
        ):
            put(applied, large[0])
        put(applied, small[0])
        events.stream.acknowledge("orders", events.stream.read("orders"))
        put(applied, large[0])
        assert consumer_lags(applied)["orders"].entries == 1


def test_deliveries_are_counted_until_the_entry_is_acknowledged(applied):
    """A restart of the consumer does not forget them."""
    with consumer(applied) as events:
        for seconds in (0, 1):
            events.sends(NOW + timedelta(seconds=seconds))
    for count in (1, 2):
        with consumer(applied) as events:
            entries = events.stream.read("orders")
            assert len(entries) == 2
            for entry in entries * 2:
                assert events.stream.deliveries("orders", entry) == count
    with consumer(applied) as events:
        events.stream.acknowledge("orders", entries[:1])
        assert events.stream.read("orders") == entries[1:]
        assert events.stream.deliveries("orders", entries[1]) == 3

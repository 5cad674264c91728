"""Events beside a source: landed by key, online at once, each exactly once."""

import json
import shutil
from contextlib import closing, contextmanager

import pytest
from redis.exceptions import OutOfMemoryError

from feature_repo import consumer
from feature_repo.broker import Stream
from tests.conftest import AS_OF
from tests.feature_repo.conftest import Events, Snapshot
from tests.feature_repo.test_incremental import rows_of
from tests.feature_repo.test_ingest import DAY, HOUR, ORDERS, VIEW, Shop, order

MINUTE = HOUR / 60
LATER = AS_OF + HOUR
FIRST = order(1, 1, AS_OF - 10 * DAY, 5.0)
SECOND = order(2, 1, AS_OF, 2.0)


class EventShop(Shop, Events):
    """A shop whose installation reads a stream of events too."""

    def __init__(self, settings, file):
        Shop.__init__(self, settings, file)
        Events.__init__(self, self.settings, ORDERS)

    def waiting(self):
        return self.redis.xpending("gyre:events:orders", "gyre")["pending"]

    def values(self, customer, at=LATER):
        return self.online(at, customer)[0]

    def spent(self, customer):
        values = self.values(customer)
        return values and values["lifetime_value"]

    def orders(self):
        """Number, customer and amount of each order that has landed."""
        return sorted(
            (row["order_id"], row["customer_id"], row["dollar_value"])
            for row in self.raw()
        )


@pytest.fixture(scope="module")
def ingested(template, tmp_path_factory):
    """An installation that has ingested one order of customer 1, of 5 dollars."""
    folder = tmp_path_factory.mktemp("source")
    shop = Shop(template.restore(), folder / "orders.parquet")
    shop.has(FIRST)
    shop.ingest(AS_OF)
    return Snapshot(shop.settings, "ingested")


@pytest.fixture
def shop(ingested, tmp_path):
    """Customer 1 has one order, of 5 dollars; it is ingested."""
    with closing(EventShop(ingested.restore(), tmp_path / "orders.parquet")) as shop:
        shop.has(FIRST)
        yield shop


def test_events_give_the_same_feature_rows_as_the_source(shop):
    orders = [order(n, n % 3 + 1, AS_OF - n * DAY, n + 0.25) for n in range(2, 40)]
    shop.receives(LATER - MINUTE, *orders[:20])
    shop.receives(LATER, *orders[20:])
    values = shop.online(LATER, 1, 2, 3)
    report = shop.ingest(LATER)
    assert (report.inserted, report.replaced) == (0, 0)
    rows = rows_of(shop.settings).drop_columns("created")
    assert shop.online(LATER, 1, 2, 3) == values
    shutil.rmtree(shop.settings.data)
    shop.has(FIRST)
    shop.ingest(AS_OF)
    shop.has(FIRST, *orders)
    shop.ingest(LATER, full=True)
    assert rows_of(shop.settings).drop_columns("created").equals(rows)


def test_the_newest_arrival_of_a_key_wins_in_any_batches(shop):
    last = order(2, 1, AS_OF, 3.0)
    shop.sends(AS_OF + MINUTE, SECOND, SECOND)
    shop.sends(AS_OF + 2 * MINUTE, last)
    shop.consumes()
    assert shop.spent(1) == 8.0
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 3.0)]
    version = shop.ingest(LATER).table_version
    shop.receives(LATER + MINUTE, last)
    assert shop.ingest(LATER + HOUR).table_version == version


def test_events_of_a_dead_consumer_are_claimed_and_replace_no_correction(
    shop, monkeypatch
):
    shop.sends(AS_OF + MINUTE, SECOND, order(3, 1, AS_OF, 1.0))
    dead_stream = Stream(shop.settings, "another host")
    assert len(dead_stream.read("orders")) == 1
    dead_stream.close()
    shop.receives(AS_OF + 2 * MINUTE, order(2, 1, AS_OF, 3.0))
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 3.0)]
    monkeypatch.setattr("feature_repo.broker.DEAD_AFTER", 0)
    shop.stream.declare(shop.consumer.schema)
    shop.consumes()
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 3.0), (3, 1, 1.0)]
    assert (shop.spent(1), shop.waiting()) == (9.0, 0)


def test_an_event_corrects_a_row_of_the_source_until_the_source_changes_it(shop):
    shop.receives(AS_OF + MINUTE, FIRST | {"dollar_value": 50.0})
    assert shop.spent(1) == 50.0
    assert shop.ingest(LATER).replaced == 0
    shop.receives(LATER + MINUTE, FIRST | {"dollar_value": 60.0})
    for hours, source_amount, amount in (
        (1, 5.0, 60.0),
        (3, 70.0, 70.0),
        (4, 5.0, 5.0),
    ):
        shop.has(FIRST | {"dollar_value": source_amount})
        shop.ingest(LATER + hours * HOUR, full=True)
        assert shop.orders() == [(1, 1, amount)]
        assert shop.spent(1) == amount


def test_an_ingest_replaces_only_events_that_arrived_before_its_start(shop):
    shop.receives(LATER - MINUTE, SECOND)
    shop.receives(LATER + MINUTE, order(3, 1, AS_OF, 3.0))
    shop.has(FIRST, order(2, 1, AS_OF, 20.0), order(3, 1, AS_OF, 30.0))
    shop.ingest(LATER)
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 20.0), (3, 1, 3.0)]
    assert shop.spent(1) == 28.0


def test_a_correction_moves_an_order_to_another_customer_and_to_an_earlier_day(shop):
    correction = order(2, 9, AS_OF - 20 * DAY, 2.0)
    shop.receives(AS_OF + MINUTE, SECOND)
    assert shop.spent(1) == 7.0
    shop.receives(AS_OF + 2 * MINUTE, correction)
    assert (shop.spent(1), shop.spent(9)) == (5.0, 2.0)
    shop.ingest(LATER)
    shop.receives(LATER + MINUTE, SECOND)
    assert (shop.spent(1), shop.spent(9)) == (7.0, None)


def test_events_that_break_a_rule_go_to_quarantine_once_and_stop_no_other_row(shop):
    bad_numbers = (1, 4, *range(10, 60))
    bad_orders = [order(number, number, AS_OF, -1.0) for number in bad_numbers]
    shop.receives(AS_OF + MINUTE, order(4, 1, AS_OF, 2.0), *bad_orders[2:])
    for minutes in (2, 3):
        shop.receives(AS_OF + minutes * MINUTE, *bad_orders)
    assert len(shop.quarantine()) == len(bad_orders)
    rules = shop.quarantine()[0]["rules"]
    assert "expect_column_values_to_be_between(dollar_value)" in rules
    assert (shop.spent(1), shop.values(10), shop.waiting()) == (7.0, None, 0)
    shop.has(FIRST, order(3, 3, AS_OF, 3.0))
    assert shop.ingest(LATER).inserted == 1
    assert shop.orders() == [(1, 1, 5.0), (3, 3, 3.0), (4, 1, 2.0)]


@contextmanager
def broken_expression(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(ORDERS.views, VIEW, lambda orders: orders.select("no_column"))
        yield


def test_events_wait_while_an_expression_is_broken_and_are_set_aside_after_many_failures(
    shop, monkeypatch
):
    monkeypatch.setattr(consumer, "MAX_DELIVERIES", 2)
    shop.sends(AS_OF + MINUTE, SECOND)
    with broken_expression(monkeypatch):
        assert not shop.consumer.step()
    assert (shop.quarantine(), shop.waiting()) == ([], 1)
    shop.consumes()
    assert shop.spent(1) == 7.0
    shop.sends(AS_OF + 2 * MINUTE, order(3, 1, AS_OF), order(4, 1, AS_OF))
    with broken_expression(monkeypatch):
        assert [shop.consumer.step() for _ in range(3)] == [False, False, True]
    assert [json.loads(row["row"])["order_id"] for row in shop.quarantine()] == [3, 4]
    assert "no_column" in shop.quarantine()[0]["rules"]
    assert (shop.spent(1), shop.waiting()) == (7.0, 0)


def test_events_wait_while_redis_has_no_memory_for_their_values(shop, monkeypatch):
    monkeypatch.setattr(consumer, "MAX_DELIVERIES", 1)
    shop.sends(AS_OF + MINUTE, SECOND)
    shop.redis.config_set("maxmemory", "1kb")
    try:
        for _ in range(3):
            with pytest.raises(OutOfMemoryError):
                shop.consumer.step()
    finally:
        shop.redis.config_set("maxmemory", 0)
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert (shop.quarantine(), shop.waiting()) == ([], 1)
    shop.consumes()
    assert (shop.spent(1), shop.waiting()) == (7.0, 0)


def test_events_wait_for_the_first_ingest(applied, tmp_path):
    shop = EventShop(applied, tmp_path / "orders.parquet")
    shop.receives(AS_OF + MINUTE, SECOND)
    assert shop.orders() == []
    shop.has(FIRST)
    shop.ingest(AS_OF)
    shop.consumes()
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert shop.spent(1) == 7.0


def test_events_land_after_redis_lost_its_features_and_ingest_brings_them_online(shop):
    shop.redis.flushall()
    shop.stream.declare(shop.consumer.schema)
    shop.receives(AS_OF + MINUTE, SECOND)
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert shop.redis.keys("gyre:online:*") == []
    shop.ingest(LATER)
    assert shop.spent(1) == 7.0

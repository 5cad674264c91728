"""Events beside a source: landed by key, online at once, each exactly once."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from operator import itemgetter
from random import Random

import ibis
import pytest
from redis.exceptions import OutOfMemoryError

from core.locks import ONLINE_LOCK, one_writer
from feature_engine.events.redis_broker import RedisStream
from feature_engine.ingest import consumer
from feature_engine.offline.raw import raw_table
from feature_engine.online.values import OnlineValues
from feature_engine.online.window_ends import WindowEnds
from tests.conftest import AS_OF
from tests.support.feature_engine.event_shop import (
    FIRST,
    LATER,
    MINUTE,
    SECOND,
    EventShop,
    ingested,  # noqa: F401  (a fixture)
    shop,  # noqa: F401  (a fixture)
)
from tests.support.feature_engine.rebuilt_views import rows_of
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, VIEW, order


@pytest.mark.journey
def test_repeated_and_corrected_events_give_the_feature_rows_of_the_source(shop):
    orders = [order(n, n % 3 + 1, AS_OF - n * DAY, n + 0.25) for n in range(2, 40)]
    wrong_orders = [order(row["order_id"], 9, AS_OF) for row in orders]
    shop.receives(LATER - MINUTE, *wrong_orders[:30], *orders[:20])
    assert shop.values(9)["lifetime_orders"] == 10
    shop.receives(LATER, *wrong_orders[20:], *orders[20:], *orders)
    values = shop.online(LATER, 1, 2, 3, 9)
    assert values[3] is None
    report = shop.ingest(LATER)
    assert (report.inserted, report.replaced) == (0, 0)
    rows = rows_of(shop.settings).drop_columns("created")
    assert shop.online(LATER, 1, 2, 3, 9) == values
    shutil.rmtree(shop.settings.data)
    shop.has(FIRST)
    shop.ingest(AS_OF)
    shop.has(FIRST, *orders)
    shop.ingest(LATER, full=True)
    assert rows_of(shop.settings).drop_columns("created").equals(rows)


def test_events_of_a_dead_consumer_are_claimed_and_replace_no_correction(
    shop, monkeypatch
):
    shop.sends(AS_OF + MINUTE, SECOND, order(3, 1, AS_OF, 1.0))
    dead_stream = RedisStream(shop.settings, "orders", "another host")
    assert len(dead_stream.read()) == 1
    dead_stream.close()
    shop.receives(AS_OF + 2 * MINUTE, order(2, 1, AS_OF, 3.0))
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 3.0)]
    monkeypatch.setattr("feature_engine.events.redis_broker.DEAD_AFTER", 0)
    shop.declare()
    shop.consumes()
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 3.0), (3, 1, 1.0)]
    assert (shop.spent(1), shop.waiting()) == (9.0, 0)


@pytest.mark.journey
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


@pytest.mark.journey
def test_events_that_break_a_rule_go_to_quarantine_once_and_stop_no_other_row(shop):
    bad_numbers = (1, 2, *range(10, 60))
    bad_orders = [order(number, number, AS_OF, -1.0) for number in bad_numbers]
    for minutes in (1, 2):
        # Some come twice in one micro-batch.
        shop.receives(AS_OF + minutes * MINUTE, SECOND, *bad_orders, *bad_orders[:5])
    rules = [row["rules"] for row in shop.quarantine()]
    expected = "expect_column_values_to_be_between(dollar_value)"
    assert rules == [expected] * len(bad_orders)
    assert (shop.spent(1), shop.values(10), shop.waiting()) == (7.0, None, 0)
    shop.has(FIRST, order(3, 3, AS_OF, 3.0))
    assert shop.ingest(LATER).inserted == 1
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 2.0), (3, 3, 3.0)]


@pytest.mark.journey
def test_late_corrected_moved_and_repeated_events_give_what_all_rows_give(shop):
    random = Random(7)
    customers = range(1, 5)
    for minute in range(1, 13):
        now = AS_OF + minute * MINUTE
        orders = [
            order(
                number=random.randint(1, 12),
                customer=random.choice(customers),
                at=AS_OF - random.choice((0, 1, 29, 30, 31, 90, 200)) * DAY,
                amount=random.choice((0.01, 5.0, 14.96)),
            )
            for _ in range(random.randint(1, 6))
        ]
        shop.receives(now, *orders)
        raw = raw_table(shop.settings, ORDERS).read()
        view_rows = ORDERS.views[VIEW](ibis.memtable(raw)).to_pyarrow().to_pylist()
        for customer, values in zip(
            customers, shop.online(now, *customers), strict=True
        ):
            rows = [row for row in view_rows if row["customer_id"] == customer]
            past = [row for row in rows if row["event_timestamp"] <= now]
            newest = max(past, key=itemgetter("event_timestamp"), default=None)
            names = (values or newest or {}).keys() & view_rows[0].keys()
            assert (values is None) == (newest is None)
            for name in names:
                assert values[name] == newest[name], (name, customer)


@contextmanager
def broken_expression(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(ORDERS.views, VIEW, lambda orders: orders.select("no_column"))
        yield


@contextmanager
def full_redis(redis):
    redis.config_set("maxmemory", "1kb")
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)


def test_events_wait_while_redis_is_full_and_are_set_aside_if_an_expression_fails_often(
    shop, monkeypatch
):
    monkeypatch.setattr(consumer, "MAX_DELIVERIES", 2)
    shop.sends(AS_OF + MINUTE, SECOND)
    with broken_expression(monkeypatch):
        assert not shop.consumer.step()
    with full_redis(shop.redis):
        for _ in range(3):
            with pytest.raises(OutOfMemoryError):
                shop.consumer.step()
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert (shop.quarantine(), shop.waiting()) == ([], 1)
    shop.consumes()
    assert shop.spent(1) == 7.0
    shop.sends(AS_OF + 2 * MINUTE, order(3, 1, AS_OF), order(4, 1, AS_OF))
    with broken_expression(monkeypatch):
        assert [shop.restarted_step() for _ in range(3)] == [False, False, True]
    assert [json.loads(row["row"])["order_id"] for row in shop.quarantine()] == [3, 4]
    assert "no_column" in shop.quarantine()[0]["rules"]
    assert (shop.spent(1), shop.waiting()) == (7.0, 0)


def test_a_request_without_rows_waits_for_nothing(shop):
    lock = ONLINE_LOCK.format("orders")
    with ThreadPoolExecutor() as threads, one_writer(shop.settings, lock):
        shop.sends(AS_OF + MINUTE)
        assert threads.submit(shop.consumer.step).result()
    assert shop.waiting() == 0


@pytest.mark.journey
def test_events_wait_for_the_first_ingest_and_land_while_redis_has_no_features(
    applied, tmp_path
):
    shop = EventShop(applied, tmp_path / "orders.parquet")
    shop.receives(AS_OF + MINUTE, FIRST)
    assert shop.orders() == []
    shop.has(order(3, 3, AS_OF))
    shop.ingest(AS_OF)
    shop.consumes()
    assert shop.spent(1) == 5.0
    shop.redis.flushall()
    shop.declare()
    shop.receives(AS_OF + 2 * MINUTE, SECOND)
    assert shop.orders() == [(1, 1, 5.0), (2, 1, 2.0), (3, 3, 10.0)]
    assert shop.redis.keys("gyre:online:*") == []
    shop.ingest(LATER)
    assert shop.spent(1) == 7.0


def test_exactly_one_of_two_consumers_brings_the_end_of_a_window_online(shop):
    end = LATER + 10 * MINUTE
    shop.receives(LATER, order(2, 1, end - 30 * DAY))
    before = shop.values(1, end - MINUTE)
    raw = raw_table(shop.settings, ORDERS)
    with closing(OnlineValues(shop.settings, ORDERS, raw)) as online:
        first = WindowEnds(online)
        second = WindowEnds(online)
        assert not first.step(end - MINUTE)
        assert first.next_time() == end
        with ThreadPoolExecutor() as threads:
            with online.lock():
                waiting_step = threads.submit(second.step, end)
                with pytest.raises(TimeoutError):
                    waiting_step.result(0.5)
                assert first.step(end)
            assert not waiting_step.result()
        assert not first.step(end)
    after = shop.values(1, end)
    assert (before["total_orders_30d"], after["total_orders_30d"]) == (2, 1)

"""Rows that a store loses: a real Redis, or SQLite, that forgets, the check, and the cure."""

import sqlite3
from random import Random
from types import SimpleNamespace

import pytest
from redis import Redis

from feature_repo.online_store import find_server, redis_problem
from monitoring.checks.online_store import _eviction, online_store
from stack.machine import connection_problems
from tests.conftest import (
    AS_OF,
    feast_apply,
    new_settings,
    running,
    unused_port,
    wait_until,
)
from tests.support.feature_engine.installation import (  # noqa: F401  (fixtures)
    Snapshot,
    applied,
    consuming,
    template,
)
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, SPEC, Shop, order, shop  # noqa: F401

CUSTOMERS = 2_000
STATE = "gyre:online:gyre:customer_features"
AHEAD = "gyre:ahead:gyre:customer_features"


@pytest.fixture(scope="module")
def stock(template, tmp_path_factory):
    """A shop whose customers are online, some with orders that are not due yet."""
    folder = tmp_path_factory.mktemp("stock")
    shop = Shop(template.restore(), folder / "orders.parquet")
    shop.orders = [
        order(number, number, AS_OF - number % 300 * HOUR)
        for number in range(1, CUSTOMERS + 1)
    ]
    shop.has(*shop.orders)
    shop.ingest(AS_OF)
    return shop, Snapshot(shop.settings, "stocked")


@pytest.fixture
def stocked(stock):
    shop, snapshot = stock
    snapshot.restore()
    shop.has(*shop.orders)
    with Redis(port=shop.settings.redis_port) as redis:
        shop.redis = redis
        yield shop


def look(shop, name="customer_features"):
    """What a monitoring run finds."""
    run = SimpleNamespace(settings=shop.settings, spec=SPEC)
    results = {result.name: result for result in online_store(run, None)}
    return results[f"online_store/{name}"]


def hashes(redis):
    return sorted(name for name in redis.scan_iter() if name.endswith(b"gyre"))


def contents(redis):
    return {name: redis.hgetall(name) for name in hashes(redis)}


def delete_one_percent(redis):
    redis.delete(*Random(1).sample(hashes(redis), CUSTOMERS // 100))


def delete_some_and_fields_of_others(redis):
    delete_one_percent(redis)
    for name in Random(2).sample(hashes(redis), CUSTOMERS // 100):
        redis.hdel(name, redis.hkeys(name)[1])


def delete_the_state(redis):
    redis.delete(STATE)


def delete_all_values(redis):
    redis.delete(*hashes(redis))


@pytest.mark.parametrize(
    "lose",
    [
        delete_one_percent,
        delete_some_and_fields_of_others,
        delete_the_state,
        delete_all_values,
    ],
)
def test_lost_rows_are_found_and_a_full_ingest_writes_them_again(stocked, lose):
    before = contents(stocked.redis)
    result = look(stocked)
    assert (result.status, result.value) == ("ok", 0)
    lose(stocked.redis)
    result = look(stocked)
    assert result.status == "alert"
    assert result.value > result.limit
    assert "have no row online" in result.words
    assert result.remedy == "gyre ingest orders --full"
    stocked.ingest(AS_OF, full=True)
    assert look(stocked).status == "ok"
    assert contents(stocked.redis) == before


@pytest.mark.journey
def test_what_changes_by_events_and_by_late_rows_is_not_lost(stocked):
    """Events that move an order, and what they wrote, though Redis lost the note of it."""
    moved = stocked.orders[0] | {"customer_id": 5_000}
    with consuming(stocked.settings, ORDERS) as send:
        send(AS_OF + HOUR, moved)
    assert look(stocked).status == "ok"
    stocked.redis.delete(AHEAD)
    stocked.has(moved, *stocked.orders[1:], order(9_999, 7_777, AS_OF - DAY))
    stocked.ingest(AS_OF + HOUR)
    assert look(stocked).status == "ok"
    keys = stocked.online(AS_OF + HOUR, 1, 5_000, 7_777)
    assert [row and row["lifetime_orders"] for row in keys] == [None, 1, 1]


def test_what_cannot_be_looked_up_is_unknown(shop):
    assert look(shop).status == "unknown"


@pytest.mark.journey
def test_another_store_is_looked_up_by_feast(applied, tmp_path):
    store = {"type": "sqlite", "path": str(tmp_path / "online.db")}
    settings = applied.model_copy(update={"online_store": store})
    feast_apply(settings)
    shop = Shop(settings, tmp_path / "orders.parquet")
    orders = [order(number, number, AS_OF - HOUR) for number in range(1, 30)]
    shop.has(*orders)
    shop.ingest(AS_OF)
    assert look(shop).status == "ok"
    with sqlite3.connect(tmp_path / "online.db") as database:
        database.execute("DELETE FROM gyre_customer_features")
    assert look(shop).value == 29
    shop.ingest(AS_OF, full=True)
    assert look(shop).status == "ok"
    # Feast cannot delete: who has no row any more is unknown again.
    shop.has(orders[0] | {"customer_id": 77}, *orders[1:])
    shop.ingest(AS_OF + HOUR)
    gone, moved = shop.online(AS_OF + HOUR, 1, 77)
    assert (gone, moved["lifetime_orders"]) == (None, 1)
    assert look(shop).status == "ok"


WITHOUT_CONFIG = ("--rename-command", "CONFIG", "")


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru"), "alert"),
        (("--maxmemory", "3mb", "--maxmemory-policy", "noeviction"), "ok"),
        (("--maxmemory-policy", "allkeys-lru"), "ok"),
        (("--rename-command", "INFO", ""), "unknown"),
    ],
)
def test_a_redis_that_may_evict_is_refused_and_named(tmp_path, options, status):
    port = unused_port()
    url = f"redis://127.0.0.1:{port}"
    settings = new_settings(tmp_path, redis_url=url)
    command = [
        find_server(),
        "--port",
        str(port),
        "--save",
        "",
        *WITHOUT_CONFIG,
        *options,
    ]
    with running([*map(str, command)], tmp_path / "redis.log"):
        wait_until("Redis", lambda: "refused" not in str(redis_problem(settings)))
        problem = redis_problem(settings)
        lines = connection_problems(settings)
        result = _eviction(settings)
        assert result.status == status
        assert bool(problem) == bool(lines) == (status == "alert")
        if problem:
            assert "expected noeviction" in problem
            assert "set maxmemory-policy noeviction" in problem
            assert "noeviction" in result.words

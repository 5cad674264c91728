"""What is online is one rule: the newest row of each entity, whatever happened in between."""

import json
from contextlib import closing

import pytest

from core.errors import DataError
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import view_table, write_views
from feature_engine.online.refresh import refresh_online
from feature_engine.online.values import OnlineValues
from tests.conftest import AS_OF
from tests.support.feature_engine.big_shop import (
    STATE,
    BigShop,
    complete_a_killed_refresh,
    hashes,
    refresh_while_events_arrive,
    state_of,
)
from tests.support.feature_engine.event_shop import (  # noqa: F401  (fixtures among them)
    FIRST,
    LATER,
    MINUTE,
    SECOND,
    ingested,
    shop,
)
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, VIEW, order

AHEAD = f"gyre:ahead:gyre:{VIEW}"


def copy_hash(shop, customer):
    """Write the values of customer 1 for another customer too; return the hash of customer 1."""
    (name,) = hashes(shop.redis)
    other = name.replace((1).to_bytes(8, "little"), customer.to_bytes(8, "little"))
    shop.redis.hset(other, mapping=shop.redis.hgetall(name))
    return name


def test_the_next_ingest_deletes_online_values_that_no_row_explains(shop):
    """An event that the source takes back, and values as if raw rows had been erased."""
    name = copy_hash(shop, 77)
    shop.redis.zadd(AHEAD, {"[77]": 0})
    shop.receives(AS_OF + MINUTE, order(2, 9, AS_OF, 2.0))
    assert (shop.spent(9), shop.spent(77)) == (2.0, 5.0)
    assert shop.redis.zcard(AHEAD) == 2
    shop.has(FIRST, SECOND)
    shop.ingest(LATER)
    assert (shop.spent(1), shop.spent(9), shop.spent(77)) == (7.0, None, None)
    assert hashes(shop.redis) == {name}
    assert shop.redis.zcard(AHEAD) == 0


def test_values_written_by_the_consumer_during_a_refresh_stay(shop):
    """They stand on a later moment, at which more rows are due."""
    shop.receives(AS_OF + MINUTE, order(2, 77, AS_OF, 3.0), order(3, 1, AS_OF, 2.0))
    raw = raw_table(shop.settings, ORDERS)
    write_views(shop.settings, ORDERS, raw)

    def moment():
        """Called when the keys of before are taken."""
        shop.redis.zadd(AHEAD, {"[1]": raw.version, "[77]": raw.version})
        return AS_OF - 11 * DAY

    shop.redis.delete(STATE)
    with closing(OnlineValues(shop.settings, ORDERS, raw)) as online:
        refresh_online(online, moment)
    assert (shop.spent(1), shop.spent(77)) == (7.0, 3.0)


def test_a_refresh_from_a_missing_version_writes_all_values_and_deletes_others(shop):
    name = copy_hash(shop, 77)
    shop.redis.delete(name)
    version = state_of(shop.redis).version
    shop.has(FIRST, order(2, 2, AS_OF, 2.0))
    shop.ingest(LATER)
    # What has not changed is not written.
    assert [shop.spent(customer) for customer in (1, 2, 77)] == [None, 2.0, 5.0]
    view_table(shop.settings, VIEW).purge()
    state = {"version": version, "time": LATER.isoformat(), "next": None}
    shop.redis.set(STATE, json.dumps(state))
    shop.ingest(LATER + HOUR)
    assert [shop.spent(customer) for customer in (1, 2, 77)] == [5.0, 2.0, None]


@pytest.mark.journey
def test_a_killed_refresh_is_completed_and_events_meanwhile_bring_back_no_older_value(
    applied, tmp_path
):
    shop = BigShop(applied, tmp_path, 10_000)
    with closing(shop.reader):
        complete_a_killed_refresh(shop, delivery=1)
        refresh_while_events_arrive(shop, delivery=2)


def test_a_refresh_of_views_without_rows_names_the_command_that_computes_them(applied):
    raw = land_orders(applied, ORDERS, [order(1, 1, AS_OF - DAY)], AS_OF)
    with closing(OnlineValues(applied, ORDERS, raw)) as online:
        message = f"{VIEW}: its rows are not computed; run: gyre ingest orders"
        with pytest.raises(DataError, match=message):
            refresh_online(online, lambda: AS_OF)


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
def test_events_during_a_refresh_of_a_million_customers_bring_back_no_older_value(
    applied, tmp_path
):
    shop = BigShop(applied, tmp_path, 1_000_000)
    with closing(shop.reader):
        refresh_while_events_arrive(shop, delivery=1)

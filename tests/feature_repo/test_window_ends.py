"""Which consumer brings values online at the end of a window, and of which keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pyarrow as pa
import pytest

from feature_repo.features import raw_table
from feature_repo.online_values import OnlineValues
from feature_repo.window_ends import WindowEnds
from tests.feature_repo.test_composite_keys import STARTS, Shop, agree, spend  # noqa: F401
from tests.feature_repo.test_composite_keys import order as order_of_kind
from tests.feature_repo.test_events import (  # noqa: F401  (fixtures among them)
    DAY,
    LATER,
    MINUTE,
    ORDERS,
    ingested,
    order,
    shop,
)


def test_windows_of_an_event_that_another_consumer_took_end_in_time(shop):
    end = LATER + 10 * MINUTE
    shop.receives(LATER, order(2, 1, end - 30 * DAY))
    before = shop.online(1, end - MINUTE)
    raw = raw_table(shop.settings, ORDERS)
    with closing(OnlineValues(shop.settings, ORDERS, raw)) as online:
        other_consumer = WindowEnds(shop.settings, ORDERS, raw, online)
        assert not other_consumer.step(end - MINUTE)
        assert other_consumer.next_time() == end
        assert other_consumer.step(end)
        assert not other_consumer.step(end)
    after = shop.online(1, end)
    assert (before["total_orders_30d"], after["total_orders_30d"]) == (2, 1)


def test_of_two_consumers_that_wait_for_one_end_one_brings_it_online(shop):
    end = LATER + 10 * MINUTE
    shop.receives(LATER, order(2, 1, end - 30 * DAY))
    raw = raw_table(shop.settings, ORDERS)
    with closing(OnlineValues(shop.settings, ORDERS, raw)) as online:
        first, second = (WindowEnds(shop.settings, ORDERS, raw, online) for _ in "ab")
        first.step(LATER)
        with ThreadPoolExecutor() as threads:
            with online.lock():
                waiting_step = threads.submit(second.step, end)
                with pytest.raises(TimeoutError):
                    waiting_step.result(1)
                assert first.step(end)
            assert not waiting_step.result()
    assert shop.online(1, end)["total_orders_30d"] == 1


def test_windows_of_a_key_of_two_columns_end_in_time(template, spend):
    """One customer has a row in the view, one in the raw table alone."""
    month = STARTS[30]
    before = month - 30 * MINUTE
    orders = [
        order_of_kind(1, 1, STARTS[29] - DAY),
        order_of_kind(2, 1, STARTS[29] + DAY),
        order_of_kind(3, 2, STARTS[29] + DAY, cds=2),
    ]
    monthly_shop = Shop(template.restore(), spend)
    monthly_shop.land(orders[:2], before)
    raw = monthly_shop.raw
    landed = pa.Table.from_pylist([orders[2] | {"ingested_at": before}], raw.schema)
    raw.merge(landed, spend.key, spend.schema.names)
    keys = [(1, "single"), (2, "several")]
    with closing(OnlineValues(monthly_shop.settings, spend, raw)) as online:
        ends = WindowEnds(monthly_shop.settings, spend, raw, online)
        values = online.compute_entities([2], before)
        online.write(values, raw.version)
        ends.add(values)
        for moment in (before, month):
            ends.step(moment)
            values = monthly_shop.online(keys, moment)
            agree(orders, {(key, moment): values[key] for key in keys})

"""Which consumer brings values online at the end of a window, and of which keys."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from feature_repo.features import raw_table
from feature_repo.online_values import OnlineValues
from feature_repo.window_ends import WindowEnds
from tests.feature_repo.conftest import land_orders
from tests.feature_repo.test_composite_keys import STARTS, spend  # noqa: F401
from tests.feature_repo.test_composite_keys import Shop as MonthlyShop
from tests.feature_repo.test_events import (  # noqa: F401  (fixtures among them)
    DAY,
    LATER,
    MINUTE,
    ORDERS,
    ingested,
    order,
    shop,
)


def test_exactly_one_of_two_consumers_brings_the_end_of_a_window_online(shop):
    end = LATER + 10 * MINUTE
    shop.receives(LATER, order(2, 1, end - 30 * DAY))
    before = shop.values(1, end - MINUTE)
    raw = raw_table(shop.settings, ORDERS)
    with closing(OnlineValues(shop.settings, ORDERS, raw)) as online:
        first = WindowEnds(shop.settings, ORDERS, raw, online)
        second = WindowEnds(shop.settings, ORDERS, raw, online)
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


def test_windows_of_a_key_of_two_columns_end_in_time(template, spend):
    """One customer has a row in the view, one in the raw table alone."""
    month = STARTS[30]
    before = month - 30 * MINUTE
    shop = MonthlyShop(template.restore(), spend)
    shop.land([order(1, 1, STARTS[29] - DAY), order(2, 1, STARTS[29] + DAY)], before)
    raw_order = order(3, 2, STARTS[29] + DAY, cds=2)
    land_orders(shop.settings, spend, [raw_order], before)
    with closing(OnlineValues(shop.settings, spend, shop.raw)) as online:
        ends = WindowEnds(shop.settings, spend, shop.raw, online)
        values = online.compute_entities([2], before)
        online.write(values, shop.raw.version)
        ends.add(values)
        for moment, spent in (
            (before, [10.0, None, None, None]),
            (month, [20.0, None, None, 10.0]),
        ):
            ends.step(moment)
            assert shop.spent(moment) == spent

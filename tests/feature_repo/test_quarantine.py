"""Rows in quarantine and their way back, by the rules that set them aside."""

from __future__ import annotations

from datetime import timedelta

import pytest

from feature_repo.quarantine import find, held, release
from stack.errors import DataError
from tests.feature_repo.test_ingest import DAY, ORDERS, order, shop  # noqa: F401  (a fixture)

WHO = {"who": "test", "why": "asked the shop"}


def back(shop, row, as_of, **changes):  # noqa: F811
    return release(shop.settings, ORDERS, row.id, as_of, changes=changes, **WHO)


def test_a_repaired_row_is_in_tables_and_online_and_no_longer_held(shop, as_of):  # noqa: F811
    shop.has(order(1, 7, as_of - 2 * DAY), order(2, 7, as_of - DAY, -5.0))
    shop.ingest(as_of)
    (row,) = held(shop.settings, ORDERS)
    assert row.rules == "expect_column_values_to_be_between(dollar_value)"
    assert find(shop.settings, ORDERS, row.id[:4]) == row
    with pytest.raises(DataError, match=r"still breaks a rule: .*dollar_value"):
        back(shop, row, as_of)
    with pytest.raises(DataError, match="no column shoe_size"):
        back(shop, row, as_of, shoe_size="44")
    with pytest.raises(DataError, match="dollar_value: expected double, found 'five'"):
        back(shop, row, as_of, dollar_value="five")
    with pytest.raises(DataError, match="lacks an offset"):
        back(shop, row, as_of, order_ts="2026-01-01T00:00:00")
    assert len(shop.raw()) == 1
    assert shop.online(as_of, 7)[0]["lifetime_orders"] == 1

    later = as_of + timedelta(hours=1)
    assert back(shop, row, later, dollar_value="5.0")["dollar_value"] == 5.0
    assert sorted(r["dollar_value"] for r in shop.raw()) == [5.0, 10.0]
    assert shop.online(later, 7)[0]["lifetime_value"] == 15.0
    assert held(shop.settings, ORDERS) == []
    with pytest.raises(DataError, match="0 rows in quarantine"):
        back(shop, row, later)
    # The source still delivers it as it was.
    report = shop.ingest(later + timedelta(hours=1))
    assert (report.inserted, report.replaced, report.quarantined) == (0, 0, 0)
    assert held(shop.settings, ORDERS) == []


def test_a_row_that_holds_by_now_goes_back_as_it_is(shop, as_of):  # noqa: F811
    shop.has(order(1, 7, as_of - DAY), order(2, 7, as_of + DAY))  # dated in the future
    shop.ingest(as_of)
    (row,) = held(shop.settings, ORDERS)
    assert back(shop, row, as_of + 2 * DAY)["order_id"] == 2
    assert shop.online(as_of + 2 * DAY, 7)[0]["lifetime_orders"] == 2


def test_a_repair_that_replaces_an_entitys_newest_row_moves_it_back_online_too(shop, as_of):  # noqa: F811
    shop.has(order(1, 7, as_of - DAY), order(2, 7, as_of - 40 * DAY, -5.0))
    shop.ingest(as_of)
    assert shop.online(as_of, 7)[0]["total_orders_30d"] == 1
    (row,) = held(shop.settings, ORDERS)
    later = as_of + timedelta(hours=1)
    back(shop, row, later, order_id="1", dollar_value="5.0")
    found = shop.online(later, 7)[0]
    assert (found["total_orders_30d"], found["lifetime_value"]) == (0, 5.0)

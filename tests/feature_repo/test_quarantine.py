"""Rows in quarantine: they are listed, and mended at the source."""

from __future__ import annotations

from datetime import timedelta

from feature_repo.quarantine import quarantined
from tests.feature_repo.test_ingest import DAY, ORDERS, order, shop  # noqa: F401  (a fixture)


def test_a_row_is_listed_with_its_rule_and_lands_once_it_is_mended(shop, as_of):  # noqa: F811
    shop.has(order(1, 7, as_of - 2 * DAY), order(2, 7, as_of - DAY, -5.0))
    shop.ingest(as_of)
    (row,) = quarantined(shop.settings, ORDERS)
    assert row["rules"] == "expect_column_values_to_be_between(dollar_value)"
    assert (row["quarantined_at"], row["row"]["order_id"]) == (as_of, 2)
    assert shop.online(as_of, 7)[0]["lifetime_orders"] == 1
    again = shop.ingest(as_of + timedelta(hours=1))
    assert (again.inserted, again.replaced, again.quarantined) == (0, 0, 0)

    shop.has(order(1, 7, as_of - 2 * DAY), order(2, 7, as_of - DAY, 5.0))
    later = as_of + timedelta(hours=2)
    assert shop.ingest(later).inserted == 1
    assert shop.online(later, 7)[0]["lifetime_value"] == 15.0
    assert quarantined(shop.settings, ORDERS) == [row]

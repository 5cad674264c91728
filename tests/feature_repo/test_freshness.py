"""Two ages, each with its limit."""

from __future__ import annotations

from datetime import timedelta

import pytest

from feature_repo.freshness import Freshness, freshness
from tests.conftest import AS_OF
from tests.feature_repo.test_ingest import DAY, order, shop  # noqa: F401  (a fixture)

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("watermark", "newest", "causes"),
    [
        (None, None, []),
        (AS_OF - HOUR, AS_OF - 47 * HOUR, []),
        (AS_OF - 3 * HOUR, AS_OF, ["orders: features are not complete since 2099-11-20 09:00 UTC"]),
        (AS_OF, AS_OF - 49 * HOUR, ["orders: source is silent since 2099-11-18 11:00 UTC"]),
    ],
)
def test_what_is_too_old_is_said_with_since_when(watermark, newest, causes):
    found = Freshness("orders", watermark, newest, 2 * DAY).problems(AS_OF)
    assert [cause for cause, _ in found] == causes
    assert all(why.startswith(cause) and "are expected" in why for cause, why in found)


def test_both_are_read_from_what_was_ingested(shop, as_of):  # noqa: F811
    assert freshness(shop.settings, "orders").problems(as_of) == []
    shop.has(order(1, 1, as_of - DAY), order(2, 1, as_of - 2 * DAY))
    shop.ingest(as_of)
    found = freshness(shop.settings, "orders")
    assert (found.watermark, found.newest) == (as_of, as_of - DAY)
    assert len(found.problems(as_of + 3 * DAY)) == 2

"""What an ingest leaves of its dataset for the console: rows, quarantine, the last validation."""

from __future__ import annotations

import pytest

from core.errors import BatchRejectedError, DataError
from feature_repo.dataset_summary import DAYS, recorded_summary
from tests.feature_repo.test_ingest import DAY, HOUR, order, shop  # noqa: F401  (a fixture)

NEGATIVE = "expect_column_values_to_be_between(dollar_value)"


def summary(shop):  # noqa: F811
    return recorded_summary(shop.settings, "orders")


def test_nothing_is_known_of_a_dataset_before_its_first_ingest(shop):  # noqa: F811
    with pytest.raises(DataError, match="no ingest of orders has ended yet"):
        summary(shop)


def test_rows_are_counted_by_the_day_of_their_event_and_only_of_the_last_days(shop, as_of):  # noqa: F811
    midnight = as_of.replace(hour=0)
    first = midnight - (DAYS - 1) * DAY
    shop.has(order(1, 1, first), order(2, 1, first - HOUR), order(3, 2, midnight),
             order(4, 2, as_of - HOUR), order(5, 2, midnight - HOUR))  # fmt: skip
    shop.ingest(as_of)
    today = as_of.date()
    assert summary(shop).rows == {first.date(): 1, today - DAY: 1, today: 2}


def test_rows_set_aside_are_counted_by_their_rules_if_they_are_of_the_same_days(shop, as_of):  # noqa: F811
    good = [order(n, n, as_of - DAY) for n in range(1, 40)]
    bad = [order(50, 50, as_of - DAY, -1.0), order(51, 51, as_of - 2 * DAY, -2.0),
           order(52, None, as_of - DAY), order(53, 53, as_of - 400 * DAY, -1.0)]  # fmt: skip
    shop.has(*good, *bad)
    assert shop.ingest(as_of).quarantined == 4
    found = summary(shop)
    others = {name: rows for name, rows in found.quarantined.items() if name != NEGATIVE}
    assert found.quarantined[NEGATIVE] == 2, "the third is of a year ago"
    assert sum(others.values()) == 1
    assert sum(found.rows.values()) == 39


def test_what_was_stopped_is_said_until_the_source_is_mended(shop, as_of):  # noqa: F811
    good = [order(n, n, as_of - DAY) for n in range(1, 40)]
    shop.has(*good)
    shop.ingest(as_of)
    assert (summary(shop).validated, summary(shop).passed) == (as_of, True)
    shop.ingest(as_of + HOUR)  # nothing new
    assert (summary(shop).validated, summary(shop).at) == (as_of, as_of + HOUR)

    bad = [order(n, n, as_of - DAY, -1.0) for n in range(100, 150)]
    shop.has(*good, *bad)
    with pytest.raises(BatchRejectedError):
        shop.ingest(as_of + 2 * HOUR)
    stopped = summary(shop)
    assert (stopped.validated, stopped.passed) == (as_of + 2 * HOUR, False)
    assert NEGATIVE in stopped.remark
    assert sum(stopped.rows.values()) == 39

    shop.has(*good)
    shop.ingest(as_of + 3 * HOUR)
    mended = summary(shop)
    assert (mended.validated, mended.passed, mended.remark) == (as_of + 2 * HOUR, True, "")

"""Rows of a living source: what passes today's rules and is still delivered is in the table."""

import pytest

from feature_engine.ingest.exact_types import as_text
from feature_engine.ingest.quarantine import (
    quarantine,
    quarantine_entries,
    quarantine_table,
)
from tests.conftest import AS_OF
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)
from tests.support.feature_engine.suites import between

NOON = AS_OF - HOUR
SOON = AS_OF + HOUR / 2
MINIMUM = {0: 0.0, 1: 0.0, 2: -10.0, 3: -10.0}
"""The least amount that the rule of each hour lets in."""
HISTORIES = {
    "late": [(2, NOON - 9 * HOUR, 1.0)],
    "ahead": [(0, SOON, 1.0)],
    "by a wrong clock": [(0, AS_OF + 3 * DAY, 1.0)],
    "corrected for later": [(0, NOON, 1.0), (0, SOON, 2.0)],
    "dated back": [(0, SOON, 1.0), (1, NOON, 1.0)],
    "bad, then of a corrected rule": [(0, NOON, -5.0)],
    "bad, then corrected": [(0, NOON, -5.0), (1, NOON, 5.0)],
    "bad, then corrected and changed back": [
        (0, NOON, -5.0),
        (1, NOON, 5.0),
        (3, NOON, -5.0),
    ],
    "good, then bad": [(0, NOON, 5.0), (1, NOON, -50.0)],
    "ahead and bad": [(0, SOON, -5.0)],
    "without a time": [(0, None, 1.0)],
    "without a time, then with one": [(1, None, 1.0), (2, NOON, 1.0)],
    "bad for ever": [(0, NOON, -50.0)],
}
"""Of each order its versions: the hour from which on it is delivered, its time, its amount."""
LANDED = list(HISTORIES).index("good, then bad")


def delivered(hour):
    """What the source holds at an hour, old versions first."""
    return [
        order(number, number, time, amount)
        for number, versions in enumerate(HISTORIES.values())
        for first_hour, time, amount in versions
        if first_hour <= hour
    ]


class Oracle:
    """The table and quarantine as plain Python has them."""

    def __init__(self):
        self.table = {}
        self.quarantine = set()

    def takes(self, rows, as_of, minimum):
        is_due = [row["order_ts"] is None or row["order_ts"] <= as_of for row in rows]
        due = [row for row, is_it in zip(rows, is_due, strict=True) if is_it]
        for row in {row["order_id"]: row for row in due}.values():
            if row["order_ts"] is None or row["dollar_value"] < minimum:
                self.quarantine.add(as_text(row))
            else:
                self.table[row["order_id"]] = row
                self.quarantine.discard(as_text(row))


@pytest.mark.journey
@pytest.mark.parametrize("is_full", [False, True])
def test_what_passes_and_is_delivered_is_in_the_table_and_nothing_else(
    shop, suite, is_full
):
    oracle = Oracle()
    for hour, minimum in MINIMUM.items():
        as_of = AS_OF + hour * HOUR
        suite(between("dollar_value", min_value=minimum, mostly=0.0))
        shop.has(*delivered(hour))
        report = shop.ingest(as_of, full=is_full)
        oracle.takes(delivered(hour), as_of, minimum)
        rows = {row["order_id"]: row for row in shop.raw()}
        names = ORDERS.schema.names
        content = {
            key: {name: row[name] for name in names} for key, row in rows.items()
        }
        assert content == oracle.table
        assert {row["row"] for row in shop.quarantine()} == oracle.quarantine
        assert len(shop.quarantine()) == len(oracle.quarantine)
        ahead = [row for row in delivered(hour) if (row["order_ts"] or as_of) > as_of]
        assert report.ahead == len(ahead)
        assert "dated more than a day ahead: 1; check the source" in report.summary()
        # What a kill between landing and leaving quarantine leaves is gone after the next ingest.
        left = as_text(oracle.table[LANDED])
        entries = quarantine_entries([left], ["a kill"], as_of)
        quarantine(quarantine_table(shop.settings, ORDERS), entries)


@pytest.mark.journey
def test_rows_in_quarantine_stop_no_delivery_and_are_not_counted_again(shop, suite):
    suite(between("dollar_value", min_value=0, mostly=0.9))
    bad = [order(number, 1, NOON, -1.0) for number in range(100, 1_100)]
    entries = quarantine_entries([as_text(row) for row in bad], ["x"] * 1_000, NOON)
    quarantine(quarantine_table(shop.settings, ORDERS), entries)
    version = quarantine_table(shop.settings, ORDERS).version
    for hour in range(2):
        good = [order(10 * hour + number, 1, NOON) for number in range(10)]
        shop.has(*bad, *good)
        report = shop.ingest(AS_OF + hour * HOUR)
        assert (report.inserted, report.quarantined) == (10, 0)
    assert quarantine_table(shop.settings, ORDERS).version == version

"""Rows in quarantine: corrected at the source, or released by a corrected rule."""

import json
from datetime import timedelta

import pytest

from feature_engine.ingest.exact_types import as_text
from feature_engine.ingest.quarantine import (
    quarantine,
    quarantine_entries,
    quarantine_table,
    release,
)
from tests.conftest import AS_OF
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)
from tests.support.feature_engine.suites import between


@pytest.mark.journey
def test_corrected_rows_and_rows_of_a_corrected_rule_land_and_all_others_stay(
    shop, suite
):
    moment = AS_OF - DAY + timedelta(microseconds=1)
    orders = [
        order(1, 7, AS_OF - 2 * DAY),
        order(2, 7, moment, -5.1),
        order(3, 8, moment, -50.0),
        order(4, 9, moment, -4.0),
    ]
    shop.has(*orders)
    shop.ingest(AS_OF)
    orders[1]["dollar_value"] = -5.5
    orders[3]["dollar_value"] = 4.0
    shop.has(*orders)
    report = shop.ingest(AS_OF + HOUR)
    assert (report.inserted, report.quarantined) == (1, 1)
    texts = [
        json.dumps({"order_id": 5, "coupon": "X"}),
        json.dumps(dict.fromkeys(ORDERS.schema.names, "text")),
    ]
    entries = quarantine_entries(texts, ["cannot be processed"] * 2, AS_OF)
    quarantine(quarantine_table(shop.settings, ORDERS), entries)
    assert release(shop.settings, ORDERS, AS_OF + 2 * HOUR).released == 0
    suite(between("dollar_value", min_value=-10))
    report = release(shop.settings, ORDERS, AS_OF + 2 * HOUR)
    assert (report.released, report.refused) == (1, 3)
    # Of several rows of a key the newest is released; none where a corrected row has landed.
    amounts = [
        (row["dollar_value"], stored_row["dollar_value"])
        for row, stored_row in report.conflicts
    ]
    assert sorted(amounts) == [(-5.1, -5.5), (-4.0, 4.0)]
    row = {row["order_id"]: row for row in shop.raw()}[2]
    assert (row["ingested_at"], row["order_ts"]) == (AS_OF + 2 * HOUR, moment)
    # They stay although the source repeats them.
    later = shop.ingest(AS_OF + 3 * HOUR, full=True)
    assert (later.inserted, later.replaced, later.quarantined) == (0, 0, 0)
    first, last = shop.online(AS_OF + 3 * HOUR, 7, 9)
    assert (first["lifetime_value"], last["lifetime_value"]) == (4.5, 4.0)
    assert len(shop.quarantine()) == 5


def test_equal_rows_without_a_key_in_one_delivery_are_set_aside_once(shop):
    nameless = order(1, 7, AS_OF - DAY) | {"order_id": None}
    shop.has(order(2, 7, AS_OF - DAY), nameless, nameless)
    for hours in (0, 1):
        report = shop.ingest(AS_OF + hours * HOUR)
        assert report.quarantined == (0 if hours else 1)
        assert len(shop.quarantine()) == 1


UNREADABLE = {
    "a doubled local hour": {"order_ts": "2026-10-25T02:30:00.000000"},
    "the year 9999": {"order_ts": "9999-12-31T00:00:00.000000"},
    "a day": {"order_ts": "2026-11-20"},
    "a number for a time": {"order_ts": 1_700_000_000},
    "a number that is none": {"dollar_value": float("nan")},
    "a text for a number": {"dollar_value": "7"},
    "an integer that no double holds": {"dollar_value": 2**53 + 1},
    "a fraction for an integer": {"number_of_cds": 1.5},
    "an integer beyond 64 bits": {"number_of_cds": 2**63},
    "more JSON": {"number_of_cds": [1]},
}


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=[*UNREADABLE])
def test_a_value_that_its_column_does_not_hold_is_not_released(shop, suite, change):
    suite()
    good = order(1, 7, AS_OF - DAY, 5.0)
    texts = [as_text(good), as_text(good | {"order_id": 2} | change)]
    entries = quarantine_entries(texts, ["a rule of yesterday"] * 2, AS_OF)
    quarantine(quarantine_table(shop.settings, ORDERS), entries)
    report = release(shop.settings, ORDERS, AS_OF)
    assert (report.released, report.refused) == (1, 1)
    assert [row["order_id"] for row in shop.raw()] == [1]

"""Rows in quarantine: listed, corrected at the source, or released by a corrected rule."""

import json
from datetime import timedelta

from feature_repo.quarantine import (
    quarantine,
    quarantine_entries,
    quarantine_table,
    quarantined,
    release,
)
from tests.conftest import AS_OF
from tests.feature_repo.test_ingest import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)
from tests.feature_repo.test_validation import between


def test_a_row_in_quarantine_is_listed_with_its_rule_and_lands_once_corrected(shop):
    good_row = order(1, 7, AS_OF - 2 * DAY)
    shop.has(good_row, order(2, 7, AS_OF - DAY, -5.0))
    shop.ingest(AS_OF)
    (entry,) = quarantined(shop.settings, ORDERS)
    assert entry["rules"] == "expect_column_values_to_be_between(dollar_value)"
    assert (entry["quarantined_at"], entry["row"]["order_id"]) == (AS_OF, 2)
    assert shop.online(AS_OF, 7)[0]["lifetime_orders"] == 1
    report = shop.ingest(AS_OF + HOUR)
    assert (report.inserted, report.replaced, report.quarantined) == (0, 0, 0)

    shop.has(good_row, order(2, 7, AS_OF - DAY, 5.0))
    assert shop.ingest(AS_OF + 2 * HOUR).inserted == 1
    assert shop.online(AS_OF + 2 * HOUR, 7)[0]["lifetime_value"] == 15.0
    assert quarantined(shop.settings, ORDERS) == [entry]


def test_rows_of_a_corrected_rule_are_released_and_stay_although_the_source_repeats_them(
    shop, suite
):
    moment = AS_OF - DAY + timedelta(microseconds=1)
    good_row = order(1, 7, AS_OF - 2 * DAY)
    bad_rows = [order(2, 7, moment, -5.1), order(3, 8, moment, -50.0)]
    shop.has(good_row, *bad_rows)
    shop.ingest(AS_OF)
    bad_rows[0]["dollar_value"] = -5.5
    shop.has(good_row, *bad_rows)
    shop.ingest(AS_OF + HOUR)
    assert release(shop.settings, ORDERS, AS_OF + 2 * HOUR).released == 0
    suite(between("dollar_value", min_value=-10))
    report = release(shop.settings, ORDERS, AS_OF + 2 * HOUR)
    assert (report.released, report.refused) == (1, 1)
    # Of several rows of a key the newest is released.
    ((row, stored_row),) = report.conflicts
    assert (row["dollar_value"], stored_row["dollar_value"]) == (-5.1, -5.5)
    (row,) = [row for row in shop.raw() if row["order_id"] == 2]
    assert (row["ingested_at"], row["order_ts"]) == (AS_OF + 2 * HOUR, moment)
    later = shop.ingest(AS_OF + 3 * HOUR, full=True)
    assert (later.inserted, later.replaced, later.quarantined) == (0, 0, 0)
    assert shop.online(AS_OF + 3 * HOUR, 7)[0]["lifetime_value"] == 4.5


def test_entries_that_are_no_rows_of_the_dataset_stay_and_are_counted(shop):
    shop.has(order(1, 7, AS_OF - DAY), order(2, 7, AS_OF - DAY, -5.0))
    shop.ingest(AS_OF)
    texts = [
        json.dumps({"entry": "1-1", "events": "no events"}),
        json.dumps({"order_id": 5, "coupon": "X"}),
        json.dumps(dict.fromkeys(ORDERS.schema.names, "text")),
    ]
    table = quarantine_table(shop.settings, ORDERS)
    rules = ["cannot be processed"] * 3
    quarantine(table, quarantine_entries(texts, rules, AS_OF))
    report = release(shop.settings, ORDERS, AS_OF + HOUR)
    assert (report.released, report.refused) == (0, 4)
    assert len(shop.quarantine()) == 4

"""Rows in quarantine: listed, corrected at the source, or released by a corrected rule."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from feature_repo import validation
from feature_repo.quarantine import (
    quarantine,
    quarantine_entries,
    quarantine_table,
    quarantined,
    release,
)
from tests.feature_repo.test_ingest import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)


def test_a_row_is_listed_with_its_rule_and_lands_once_it_is_corrected(shop, as_of):
    good_row = order(1, 7, as_of - 2 * DAY)
    shop.has(good_row, order(2, 7, as_of - DAY, -5.0))
    shop.ingest(as_of)
    (entry,) = quarantined(shop.settings, ORDERS)
    assert entry["rules"] == "expect_column_values_to_be_between(dollar_value)"
    assert (entry["quarantined_at"], entry["row"]["order_id"]) == (as_of, 2)
    assert shop.online(as_of, 7)[0]["lifetime_orders"] == 1
    report = shop.ingest(as_of + HOUR)
    assert (report.inserted, report.replaced, report.quarantined) == (0, 0, 0)

    shop.has(good_row, order(2, 7, as_of - DAY, 5.0))
    assert shop.ingest(as_of + 2 * HOUR).inserted == 1
    assert shop.online(as_of + 2 * HOUR, 7)[0]["lifetime_value"] == 15.0
    assert quarantined(shop.settings, ORDERS) == [entry]


@pytest.fixture
def correct_rules(tmp_path, monkeypatch):
    """A function that corrects the suite as a person would: amounts down to -10 are good.

    Rules on times go: those of the tests lie ahead of the clock by which the command judges.
    """

    def correct():
        suite = json.loads((validation.EXPECTATIONS / "orders.json").read_text())
        rules = []
        for rule in suite["expectations"]:
            limits = rule["kwargs"]
            if limits.get("column") == "dollar_value" and "min_value" in limits:
                limits["min_value"] = -10
            if "as_of" not in json.dumps(rule):
                rules.append(rule)
        (tmp_path / "orders.json").write_text(json.dumps({"expectations": rules}))
        monkeypatch.setattr(validation, "EXPECTATIONS", tmp_path)

    return correct


def test_rows_of_a_corrected_rule_are_released_and_stay_although_the_source_repeats_them(
    shop, as_of, correct_rules
):
    moment = as_of - DAY + timedelta(microseconds=1)
    good_row = order(1, 7, as_of - 2 * DAY)
    bad_rows = [order(2, 7, moment, -5.1), order(3, 8, moment, -50.0)]
    shop.has(good_row, *bad_rows)
    shop.ingest(as_of)
    bad_rows[0]["dollar_value"] = -5.5
    shop.has(good_row, *bad_rows)
    shop.ingest(as_of + HOUR)
    assert release(shop.settings, ORDERS, as_of + 2 * HOUR).released == 0
    correct_rules()
    report = release(shop.settings, ORDERS, as_of + 2 * HOUR)
    assert (report.released, report.refused) == (1, 1)
    # Of several rows of a key the newest is released.
    ((row, stored_row),) = report.conflicts
    assert (row["dollar_value"], stored_row["dollar_value"]) == (-5.1, -5.5)
    (row,) = [row for row in shop.raw() if row["order_id"] == 2]
    assert (row["ingested_at"], row["order_ts"]) == (as_of + 2 * HOUR, moment)
    later = shop.ingest(as_of + 3 * HOUR, full=True)
    assert (later.inserted, later.replaced, later.quarantined) == (0, 0, 0)
    assert shop.online(as_of + 3 * HOUR, 7)[0]["lifetime_value"] == 4.5


def test_what_is_no_row_of_the_dataset_stays_and_is_counted(shop, as_of):
    shop.has(order(1, 7, as_of - DAY), order(2, 7, as_of - DAY, -5.0))
    shop.ingest(as_of)
    texts = [
        json.dumps({"entry": "1-1", "events": "no events"}),
        json.dumps({"order_id": 5, "coupon": "X"}),
        json.dumps(dict.fromkeys(ORDERS.schema.names, "text")),
    ]
    table = quarantine_table(shop.settings, ORDERS)
    rules = ["cannot be processed"] * 3
    quarantine(table, quarantine_entries(texts, rules, as_of))
    report = release(shop.settings, ORDERS, as_of + HOUR)
    assert (report.released, report.refused) == (0, 4)
    assert len(shop.aside()) == 4

"""The record that an ingest leaves: ages, counts, the last validation, and what is wrong."""

from __future__ import annotations

import pytest

from core.errors import BatchRejectedError
from feature_repo.dataset_record import DAYS, read_record, record_file
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_ingest import DAY, HOUR, order, shop  # noqa: F401  (a fixture)

NEGATIVE = "expect_column_values_to_be_between(dollar_value)"


@pytest.mark.parametrize("text", ["{", '{"name": "visits"}'])
def test_a_broken_record_is_a_problem_and_a_missing_one_is_none(tmp_path, text):
    settings = new_settings(tmp_path)
    file = record_file(settings, "visits")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    ((cause, problem),) = read_record(settings, "visits").problems(AS_OF)
    assert cause == problem
    assert "visits: its record cannot be read; run: gyre ingest visits" in problem
    assert read_record(settings, "orders").problems(AS_OF) == []


def test_an_ingest_records_ages_rules_services_and_rows_by_their_days(shop, as_of):
    good_rows = [order(number, number, as_of - DAY) for number in range(1, 40)]
    shop.has(
        *good_rows,
        order(48, 1, as_of - (DAYS + 1) * DAY),
        order(49, 1, as_of - HOUR),
        order(50, 50, as_of - DAY, -1.0),
        order(51, 51, as_of - 2 * DAY, -2.0),
        order(52, 52, None),
        order(53, 53, as_of + 100 * DAY),
        order(54, 54, as_of - 400 * DAY, -1.0),
    )
    assert shop.ingest(as_of).quarantined == 5
    record = read_record(shop.settings, "orders")
    ages = (record.as_of, record.watermark, record.newest)
    assert ages == (as_of, as_of, as_of - HOUR)
    assert record.rows == {as_of.date() - DAY: 39, as_of.date(): 1}
    assert record.quarantined == {
        NEGATIVE: 2,
        "expect_column_values_to_not_be_null(order_ts)": 1,
        "expect_column_values_to_be_between(order_ts)": 1,
    }
    assert list(record.services) == ["customer_churn_v1"]
    assert "expect_column_values_to_be_unique(order_id)" in record.delivery_rules
    assert "expect_column_mean_to_be_between(dollar_value)" in record.delivery_rules
    assert NEGATIVE not in record.delivery_rules
    assert record.problems(as_of) == []
    assert len(record.problems(as_of + 3 * DAY)) == 2


def test_a_stopped_batch_is_recorded_until_the_source_is_repaired(shop, as_of):
    good_rows = [order(number, number, as_of - DAY) for number in range(1, 40)]
    bad_rows = [order(number, number, as_of - DAY, -1.0) for number in range(100, 150)]
    shop.has(*good_rows)
    shop.ingest(as_of)
    assert read_record(shop.settings, "orders").passed

    shop.has(*good_rows, *bad_rows)
    with pytest.raises(BatchRejectedError):
        shop.ingest(as_of + HOUR)
    record = read_record(shop.settings, "orders")
    assert (record.as_of, record.watermark) == (as_of + HOUR, as_of)
    assert not record.passed
    assert NEGATIVE in record.remark
    assert sum(record.rows.values()) == 39

    shop.has(*good_rows)
    shop.ingest(as_of + 2 * HOUR)
    record = read_record(shop.settings, "orders")
    assert (record.passed, record.remark) == (True, "")

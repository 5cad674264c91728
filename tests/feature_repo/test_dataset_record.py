"""The record that an ingest leaves of its dataset: ages, rows, quarantine, the last validation."""

from __future__ import annotations

import pytest

from core.errors import BatchRejectedError
from feature_repo.dataset_record import DAYS, DatasetRecord, read_record, record_file
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_ingest import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)

NEGATIVE = "expect_column_values_to_be_between(dollar_value)"


@pytest.mark.parametrize(
    ("watermark", "newest", "causes"),
    [
        (None, None, []),
        (AS_OF - HOUR, AS_OF - 47 * HOUR, []),
        (AS_OF - 3 * HOUR, AS_OF, ["orders: features are not complete"]),
        (AS_OF, AS_OF - 49 * HOUR, ["orders: source is silent"]),
    ],
)
def test_what_is_too_old_is_said_with_since_when(watermark, newest, causes):
    record = DatasetRecord("orders", watermark=watermark, newest=newest, silence=2 * DAY)
    problems = record.problems(AS_OF)
    assert [cause for cause, _ in problems] == causes
    assert all(f"{cause} since 2099-11-" in text for cause, text in problems)


def test_before_the_first_ingest_nothing_is_known(tmp_path):
    record = read_record(new_settings(tmp_path), "orders")
    assert record == DatasetRecord("orders")
    assert record.problems(AS_OF) == []


def test_a_broken_or_old_record_is_a_problem_of_its_own_dataset_alone(shop, as_of):  # noqa: F811
    shop.has(order(1, 1, as_of - DAY))
    shop.ingest(as_of)
    for text in ("{", '{"name": "visits"}', '{"dataset": "visits", "watermark": "yesterday"}'):
        record_file(shop.settings, "visits").write_text(text)
        ((cause, problem),) = read_record(shop.settings, "visits").problems(as_of)
        assert cause == problem
        assert "visits: its record cannot be read; run: gyre ingest visits" in problem
    assert read_record(shop.settings, "orders").problems(as_of) == []


def test_an_ingest_leaves_both_ages_and_who_reads_the_views(shop, as_of):  # noqa: F811
    shop.has(order(1, 1, as_of - DAY), order(2, 1, as_of - 2 * DAY))
    shop.ingest(as_of)
    record = read_record(shop.settings, "orders")
    assert (record.watermark, record.newest) == (as_of, as_of - DAY)
    assert list(record.services) == ["customer_churn_v1"]
    assert record.problems(as_of) == []
    assert len(record.problems(as_of + 3 * DAY)) == 2


def test_rows_are_counted_by_the_day_of_their_event(shop, as_of):  # noqa: F811
    old = as_of - (DAYS + 1) * DAY
    shop.has(order(1, 1, old), order(2, 1, as_of - DAY), order(3, 2, as_of - 13 * HOUR),
             order(4, 2, as_of - HOUR))  # fmt: skip
    shop.ingest(as_of)
    today = as_of.date()
    assert read_record(shop.settings, "orders").rows == {today - DAY: 2, today: 1}


def test_rows_set_aside_are_counted_by_their_rules_if_they_are_of_the_same_days(shop, as_of):  # noqa: F811
    good = [order(n, n, as_of - DAY) for n in range(1, 40)]
    bad = [order(50, 50, as_of - DAY, -1.0), order(51, 51, as_of - 2 * DAY, -2.0),
           order(52, None, as_of - DAY), order(53, 53, as_of - 400 * DAY, -1.0)]  # fmt: skip
    shop.has(*good, *bad)
    assert shop.ingest(as_of).quarantined == 4
    counts = read_record(shop.settings, "orders").quarantined
    assert counts.pop(NEGATIVE) == 2, "the third is of a year ago"
    assert list(counts.values()) == [1]


def test_it_names_the_rules_that_events_do_not_pass(shop, as_of):  # noqa: F811
    shop.has(order(1, 1, as_of - DAY))
    shop.ingest(as_of)
    rules = read_record(shop.settings, "orders").delivery_rules
    assert "expect_column_values_to_be_unique(order_id)" in rules
    assert "expect_column_mean_to_be_between(dollar_value)" in rules
    assert NEGATIVE not in rules


def test_a_stopped_batch_is_said_until_the_source_is_mended(shop, as_of):  # noqa: F811
    good = [order(n, n, as_of - DAY) for n in range(1, 40)]
    shop.has(*good)
    shop.ingest(as_of)
    shop.ingest(as_of + HOUR)  # nothing new
    record = read_record(shop.settings, "orders")
    assert (record.as_of, record.validated, record.passed) == (as_of + HOUR, as_of, True)

    bad = [order(n, n, as_of - DAY, -1.0) for n in range(100, 150)]
    shop.has(*good, *bad)
    with pytest.raises(BatchRejectedError):
        shop.ingest(as_of + 2 * HOUR)
    stopped = read_record(shop.settings, "orders")
    assert (stopped.validated, stopped.passed) == (as_of + 2 * HOUR, False)
    assert NEGATIVE in stopped.remark
    assert stopped.watermark == as_of + HOUR
    assert sum(stopped.rows.values()) == 39

    shop.has(*good)
    shop.ingest(as_of + 3 * HOUR)
    mended = read_record(shop.settings, "orders")
    assert (mended.validated, mended.passed, mended.remark) == (as_of + 2 * HOUR, True, "")

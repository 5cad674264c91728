"""The record that an ingest leaves: ages, counts, the last validation, and what is wrong."""

import pytest

from core.errors import BatchRejectedError
from feature_engine.ingest.record import DAYS, read_record, record_file
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.shop import DAY, HOUR, order, shop  # noqa: F401  (a fixture)

NEGATIVE = "expect_column_values_to_be_between(dollar_value)"


def test_a_broken_record_is_reported_and_a_missing_record_is_not(tmp_path):
    settings = new_settings(tmp_path)
    file = record_file(settings, "visits")
    file.parent.mkdir(parents=True)
    file.write_text('{"name": "visits"}')
    ((cause, problem),) = read_record(settings, "visits").problems(AS_OF, 2 * HOUR)
    assert cause == problem
    assert "visits: its record cannot be read; run: gyre ingest visits" in problem
    assert read_record(settings, "orders").problems(AS_OF, 2 * HOUR) == []


def test_the_record_has_ages_rows_and_rules_of_an_ingest_and_a_batch_that_was_stopped(
    shop,
):
    orders = [
        *[order(number, number, AS_OF - DAY) for number in range(1, 40)],
        order(48, 1, AS_OF - (DAYS + 1) * DAY),
        order(49, 1, AS_OF - HOUR),
        order(50, 50, AS_OF - DAY, -1.0),
        order(51, 51, AS_OF - 2 * DAY, -2.0),
        order(52, 52, None),
        order(53, 53, AS_OF + 100 * DAY),
        order(54, 54, AS_OF - 400 * DAY, -1.0),
    ]
    shop.has(*orders)
    report = shop.ingest(AS_OF)
    assert (report.quarantined, report.ahead) == (4, 1)
    record = read_record(shop.settings, "orders")
    ages = (record.as_of, record.watermark, record.newest)
    assert ages == (AS_OF, AS_OF, AS_OF - HOUR)
    assert record.rows == {AS_OF.date() - DAY: 39, AS_OF.date(): 1}
    assert record.quarantined == {
        NEGATIVE: 2,
        "expect_column_values_to_not_be_null(order_ts)": 1,
    }
    assert list(record.services) == ["customer_churn_v1"]
    assert record.problems(AS_OF, 2 * HOUR) == []
    assert len(record.problems(AS_OF + 3 * DAY, 2 * HOUR)) == 2

    bad_orders = [order(number, 1, AS_OF, -1.0) for number in range(100, 150)]
    shop.has(*orders, *bad_orders)
    with pytest.raises(BatchRejectedError):
        shop.ingest(AS_OF + HOUR)
    stopped = read_record(shop.settings, "orders")
    assert (stopped.as_of, stopped.watermark) == (AS_OF + HOUR, AS_OF)
    assert (stopped.passed, stopped.rows) == (False, record.rows)
    assert NEGATIVE in stopped.remark

    shop.has(*orders)
    shop.ingest(AS_OF + 2 * HOUR)
    repaired = read_record(shop.settings, "orders")
    remark = "rows dated more than a day ahead: 1; check the source's clock"
    assert (repaired.passed, repaired.remark) == (True, remark)
    last, bad, first = repaired.ingests
    assert (last.as_of, bad.passed, first.inserted) == (AS_OF + 2 * HOUR, False, 41)
    assert (first.quarantined, first.ahead, first.late) == (4, 1, 0)
    assert not {*last.warnings, *bad.warnings}, "they may quote rows"


@pytest.mark.journey
def test_late_and_corrected_rows_of_an_ingest_are_counted_and_few_ingests_are_kept(
    shop, monkeypatch
):
    monkeypatch.setattr("feature_engine.ingest.record_writer.SHOWN_INGESTS", 3)
    first_orders = [order(number, number, AS_OF - DAY) for number in range(1, 10)]
    shop.has(*first_orders)
    shop.ingest(AS_OF)
    late_orders = [order(20, 1, AS_OF - 3 * DAY), order(1, 1, AS_OF - DAY, 99.0)]
    shop.has(*first_orders[1:], *late_orders, order(21, 1, AS_OF + HOUR / 2))
    shop.ingest(AS_OF + HOUR)
    for hours in (2, 3):
        shop.ingest(AS_OF + hours * HOUR)
    ingests = read_record(shop.settings, "orders").ingests
    counts = [(each.inserted, each.replaced, each.late) for each in ingests]
    assert counts == [(0, 0, 0), (0, 0, 0), (2, 1, 2)]

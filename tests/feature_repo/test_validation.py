"""What happens to a row that breaks a rule, whether an ingest or an event brings it."""

from dataclasses import replace

import pyarrow as pa
import pytest

from core.errors import BatchRejectedError
from feature_repo import landing
from feature_repo.features import raw_table
from feature_repo.landing import land
from feature_repo.quarantine import quarantine_table, quarantined
from feature_repo.source import pull
from feature_repo.validation import NOT_NULL, DatasetRules, delivery_rules
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_ingest import DAY, HOUR, ORDERS, order, order_table


def rule(expectation, column, **limits):
    return {"type": expectation, "kwargs": {"column": column, **limits}}


def between(column, **limits):
    return rule("expect_column_values_to_be_between", column, **limits)


AMOUNT = between("dollar_value", min_value=0)
MOSTLY = between("dollar_value", min_value=0, mostly=0.9)
WARNING = {"severity": "warning"}
NAME = "expect_column_values_to_be_between(dollar_value)"


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path / "home")


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(landing, "BATCH_ROWS", 10)


def deliver(settings, rows, as_of=AS_OF):
    return land(settings, ORDERS, rows.to_reader(), as_of)


def some_orders(count, bad_count):
    """Orders, some of which have a negative amount."""
    amounts = [-1.0] * bad_count + [1.0] * (count - bad_count)
    orders = [
        order(number, number, AS_OF - DAY, amount)
        for number, amount in enumerate(amounts)
    ]
    return order_table(*orders)


def validations(rows):
    """What the rules say of rows of a delivery, and of rows of events."""
    return [
        DatasetRules(ORDERS).validate(rows, AS_OF),
        DatasetRules(ORDERS, for_events=True).validate(rows, AS_OF),
    ]


@pytest.mark.parametrize(
    ("suite_rule", "bad_count", "failures"),
    [(MOSTLY, 3, 0), (MOSTLY, 30, 1), (AMOUNT, 1, 1)],
)
def test_bad_rows_are_set_aside_and_a_rule_that_fails_as_a_whole_stops_a_delivery(
    suite, suite_rule, bad_count, failures
):
    rows = some_orders(100, bad_count)
    suite(suite_rule)
    for report in validations(rows):
        assert report.bad_rows == dict.fromkeys(range(bad_count), NAME)
        assert report.good(rows).num_rows == 100 - bad_count
        assert len(report.rejections) == failures
        text = f"{NAME}: {bad_count} rows, such as [-1.0"
        assert all(line.startswith(text) for line in report.rejections)
    suite(suite_rule | WARNING)
    delivery, events = validations(rows)
    assert delivery.bad_rows == events.bad_rows == {}
    assert delivery.rejections == events.rejections == []
    assert len(delivery.warnings) == failures


def test_a_rule_over_many_rows_applies_to_deliveries_and_not_to_events(suite):
    unique = "expect_column_values_to_be_unique"
    suite(rule(unique, "customer_id", mostly=0.5), AMOUNT, AMOUNT | WARNING)
    assert delivery_rules(ORDERS) == [f"{unique}(customer_id)", NAME]
    delivery, events = validations(order_table(*[order(1, 1, AS_OF - DAY)] * 3))
    assert delivery.bad_rows == events.bad_rows == {}
    assert len(delivery.rejections) == 1
    assert events.rejections == []


@pytest.mark.parametrize("for_events", [False, True])
@pytest.mark.parametrize(
    ("column", "minimum", "message"),
    [
        ("dollars", 0, r"\(dollars\): .*dollars"),
        ("dollar_value", {"$PARAMETER": "fresh_form"}, "fresh_form"),
    ],
)
def test_a_rule_that_cannot_be_evaluated_accepts_no_row(
    suite, for_events, column, minimum, message
):
    suite(between(column, min_value=minimum))
    rules = DatasetRules(ORDERS, for_events=for_events)
    with pytest.raises(
        BatchRejectedError, match=rf"expectations/orders\.json: .*{message}"
    ):
        rules.validate(some_orders(1, bad_count=0), AS_OF)


def test_an_event_may_lack_a_column_that_only_a_warning_requires(suite):
    suite(rule(NOT_NULL, "order_id"), rule(NOT_NULL, "number_of_cds") | WARNING)
    assert DatasetRules(ORDERS, for_events=True).never_null == {"order_id"}


def test_the_last_row_of_a_repeated_key_counts_in_any_batch(
    suite, settings, small_batches
):
    suite(AMOUNT)
    first_rows = [order(number, 1, AS_OF - DAY, 1.0) for number in range(100)]
    corrections = [order(number, 1, AS_OF - DAY, 2.0) for number in range(0, 100, 3)]
    rows = order_table(*first_rows, *corrections, first_rows[1])
    report = deliver(settings, rows)
    assert (report.inserted, report.quarantined) == (100, 0)
    (warning,) = report.warnings
    assert "keys with several contents in one delivery: 34, such as " in warning
    assert "the last row of each counts" in warning
    landed = raw_table(settings, ORDERS).read().sort_by("order_id")
    expected = [1.0 if number % 3 else 2.0 for number in range(100)]
    assert landed["dollar_value"].to_pylist() == expected
    report = deliver(settings, rows, AS_OF + HOUR)
    assert (report.replaced, report.warnings) == (0, ())


def test_a_second_dataset_has_the_rows_and_rules_of_the_first(suite, settings):
    suite(AMOUNT)
    sizes = replace(
        ORDERS, name="sizes", entity="number_of_cds", rows_of="orders", views={}
    )
    rows = pull(settings, ORDERS, AS_OF).read_all()
    assert pull(settings, sizes, AS_OF).read_all().equals(rows)
    delivery = pa.concat_tables([rows.slice(0, 30), some_orders(1, bad_count=1)])
    with pytest.raises(
        BatchRejectedError, match=r"sizes: the batch .* expectations/orders\.json"
    ):
        land(settings, sizes, delivery.to_reader(), AS_OF)
    assert land(settings, sizes, rows.slice(0, 30).to_reader(), AS_OF).inserted == 30


def test_bad_rows_of_all_batches_are_set_aside_and_the_good_ones_land_in_one_commit(
    suite, settings, small_batches
):
    suite(
        between("dollar_value", min_value=0, mostly=0.2),
        rule(NOT_NULL, "order_id", mostly=0.5),
    )
    orders = [order(number, number, AS_OF - DAY) for number in range(1, 101)]
    for row in orders[3::4]:
        row["dollar_value"] = -1.0
    for row in orders[4::5]:
        row["order_id"] = None
    report = deliver(settings, order_table(*orders))
    assert (report.inserted, report.quarantined, report.table_version) == (60, 40, 0)
    landed = raw_table(settings, ORDERS).read().sort_by("order_id")
    good_numbers = [n for n in range(1, 101) if n % 4 and n % 5]
    assert landed["order_id"].to_pylist() == good_numbers
    bad_rows = [entry["row"] for entry in quarantined(settings, ORDERS)]
    bad_customers = {row["customer_id"] for row in bad_rows}
    assert bad_customers.isdisjoint(good_numbers)
    assert len(bad_customers) == len(bad_rows) == 40
    report = deliver(settings, order_table(*orders), AS_OF + HOUR)
    assert (report.inserted, report.quarantined, report.table_version) == (0, 0, 0)
    assert list(settings.cache.iterdir()) == []


def test_a_delivery_with_one_rejected_batch_changes_nothing_and_is_shown(
    suite, settings, small_batches
):
    suite(
        between("dollar_value", min_value=-2.0, mostly=0.9),
        rule("expect_column_max_to_be_between", "customer_id", max_value=1_000),
    )
    deliver(settings, order_table(order(1_000, 1, AS_OF - DAY)))
    orders = [order(number, number, AS_OF - DAY) for number in range(1, 101)]
    orders[45]["customer_id"] = 123_456
    orders[50]["dollar_value"] = -5.0
    with pytest.raises(BatchRejectedError, match=r"expect_column_max.*123456"):
        deliver(settings, order_table(*orders), AS_OF + HOUR)
    raw = raw_table(settings, ORDERS)
    assert (raw.version, raw.read().num_rows) == (0, 1)
    assert not quarantine_table(settings, ORDERS).exists
    page = settings.data_docs / "orders" / "index.html"
    assert "123456" in page.read_text()

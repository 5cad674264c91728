"""One fate for a row that breaks a rule, whether an ingest or an event brings it."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from core.errors import BatchRejectedError
from feature_repo import landing, validation
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.landing import land
from feature_repo.quarantine import quarantine_table, quarantined
from feature_repo.source import pull
from feature_repo.validation import DatasetRules, delivery_rules
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_ingest import DAY, HOUR, order

ORDERS = load_dataset("orders")
BETWEEN = "expect_column_values_to_be_between"
AMOUNT = {"type": BETWEEN, "kwargs": {"column": "dollar_value", "min_value": 0}}
MOSTLY = {"type": BETWEEN, "kwargs": AMOUNT["kwargs"] | {"mostly": 0.9}}
UNIQUE = {
    "type": "expect_column_values_to_be_unique",
    "kwargs": {"column": "customer_id", "mostly": 0.5},
}
WARNING = {"severity": "warning"}
NAME = f"{BETWEEN}(dollar_value)"


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A function that gives the orders a suite of some rules."""
    monkeypatch.setattr(validation, "EXPECTATIONS", tmp_path)

    def write(*rules):
        text = json.dumps({"name": "orders", "expectations": rules})
        (tmp_path / "orders.json").write_text(text)

    return write


def table(*orders):
    return pa.Table.from_pylist(list(orders), schema=ORDERS.schema)


def some_orders(count, bad_count):
    """Orders, some of which have a negative amount."""
    amounts = [-1.0] * bad_count + [1.0] * (count - bad_count)
    orders = [
        order(number, number, AS_OF - DAY, amount)
        for number, amount in enumerate(amounts)
    ]
    return table(*orders)


def validations(rows):
    """What the rules say of rows of a delivery, and of rows of events."""
    return [
        DatasetRules(ORDERS).validate(rows, AS_OF),
        DatasetRules(ORDERS, for_events=True).validate(rows, AS_OF),
    ]


def test_a_bad_row_is_set_aside_by_either_way(suite):
    suite(MOSTLY)
    rows = some_orders(100, bad_count=3)
    for report in validations(rows):
        assert report.bad_rows == {0: NAME, 1: NAME, 2: NAME}
        assert report.good(rows).num_rows == 97
        assert report.rejections == []


@pytest.mark.parametrize(("rule", "bad_count"), [(MOSTLY, 30), (AMOUNT, 1)])
def test_a_rule_that_fails_as_a_whole_stops_a_delivery_and_sets_events_aside(
    suite, rule, bad_count
):
    suite(rule)
    delivery, events = validations(some_orders(100, bad_count))
    (rejection,) = delivery.rejections
    assert rejection.startswith(f"{NAME}: {bad_count} rows, such as [-1.0")
    assert len(events.bad_rows) == bad_count


@pytest.mark.parametrize("rule", [MOSTLY | WARNING, AMOUNT | WARNING])
@pytest.mark.parametrize("bad_count", [1, 3, 30])
def test_a_warning_sets_nothing_aside_and_stops_nothing(suite, rule, bad_count):
    suite(rule)
    delivery, events = validations(some_orders(100, bad_count))
    assert delivery.bad_rows == events.bad_rows == {}
    assert delivery.rejections == events.rejections == []
    is_tolerated = "mostly" in rule["kwargs"] and bad_count <= 10
    assert len(delivery.warnings) == (0 if is_tolerated else 1)


def test_a_rule_over_many_rows_judges_deliveries_alone(suite):
    suite(UNIQUE, AMOUNT, AMOUNT | WARNING)
    assert delivery_rules(ORDERS) == [
        "expect_column_values_to_be_unique(customer_id)",
        NAME,
    ]
    rows = table(
        *(order(number, min(number, 5), AS_OF - DAY) for number in range(1, 10))
    )
    delivery, events = validations(rows)
    assert delivery.bad_rows == events.bad_rows == {}
    assert len(delivery.rejections) == 1
    assert events.rejections == []


@pytest.mark.parametrize("for_events", [False, True])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"column": "dollars", "min_value": 0}, r"\(dollars\): .*dollars"),
        (
            {"column": "dollar_value", "min_value": {"$PARAMETER": "fresh_form"}},
            "fresh_form",
        ),
    ],
)
def test_a_rule_that_cannot_be_evaluated_lets_nothing_in(
    suite, for_events, kwargs, message
):
    suite({"type": BETWEEN, "kwargs": kwargs})
    rules = DatasetRules(ORDERS, for_events=for_events)
    with pytest.raises(
        BatchRejectedError, match=rf"expectations/orders\.json: .*{message}"
    ):
        rules.validate(some_orders(1, bad_count=0), AS_OF)


def test_the_data_docs_show_what_was_observed(suite):
    mean = {"column": "dollar_value", "min_value": 2}
    suite({"type": "expect_column_mean_to_be_between", "kwargs": mean})
    rows = table(order(1, 1, AS_OF - DAY, 1.2345), order(2, 1, AS_OF - DAY, 1.2345))
    report = DatasetRules(ORDERS).validate(rows, AS_OF)
    assert "1.2345" in report.page()


def test_an_event_may_lack_what_only_a_warning_asks_for(suite):
    never_null = {"type": validation.NOT_NULL, "kwargs": {"column": "order_id"}}
    better_not = {
        "type": validation.NOT_NULL,
        "kwargs": {"column": "number_of_cds"},
    } | WARNING
    suite(never_null, better_not)
    assert DatasetRules(ORDERS, for_events=True).never_null == {"order_id"}


def test_an_unchanged_delivery_validates_nothing_even_if_it_has_nulls(suite, tmp_path):
    suite(AMOUNT)
    settings = new_settings(tmp_path)
    rows = table(order(1, 1, AS_OF - DAY, None, None), order(2, None, None))
    page = settings.data_docs / "orders" / "index.html"
    assert land(settings, ORDERS, rows.to_reader(), AS_OF).inserted == 2
    page.unlink()
    report = land(settings, ORDERS, rows.to_reader(), AS_OF + HOUR)
    assert (report.inserted, report.replaced, report.table_version) == (0, 0, 0)
    assert not page.exists()


def test_a_key_with_several_contents_in_one_delivery_is_said_and_the_last_counts(
    suite, tmp_path
):
    suite(AMOUNT)
    settings = new_settings(tmp_path)
    first_rows = [order(number, 1, AS_OF - DAY, 1.0) for number in range(5)]
    corrections = [order(number, 1, AS_OF - DAY, 2.0) for number in range(4)]
    rows = table(*first_rows, *corrections, first_rows[4])
    report = land(settings, ORDERS, rows.to_reader(), AS_OF)
    assert (report.inserted, report.quarantined) == (5, 0)
    (warning,) = report.warnings
    assert "keys with several contents in one delivery: 4, such as " in warning
    assert "of each the last row counts" in warning
    assert warning.count("order_id") == 3
    report = land(settings, ORDERS, rows.to_reader(), AS_OF + HOUR)
    assert (report.replaced, report.warnings) == (0, ())
    assert not quarantine_table(settings, ORDERS).exists


def test_a_second_dataset_has_the_rows_and_rules_of_the_first(suite, tmp_path):
    suite(AMOUNT)
    settings = new_settings(tmp_path)
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


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(landing, "BATCH_ROWS", 10)


def one_in_four_bad(count):
    """Orders, every fourth with a negative amount."""
    return [
        order(number, number, AS_OF - DAY, 1.0 if number % 4 else -1.0)
        for number in range(1, count + 1)
    ]


def test_bad_rows_of_all_batches_are_set_aside_and_the_good_ones_land_in_one_commit(
    suite, tmp_path, small_batches
):
    suite({"type": BETWEEN, "kwargs": AMOUNT["kwargs"] | {"mostly": 0.2}})
    settings = new_settings(tmp_path)
    rows = one_in_four_bad(100)
    report = land(settings, ORDERS, table(*rows).to_reader(), AS_OF)
    assert (report.inserted, report.quarantined, report.table_version) == (75, 25, 0)
    landed = raw_table(settings, ORDERS).read().sort_by("order_id")
    assert landed["order_id"].to_pylist() == [n for n in range(1, 101) if n % 4]
    entries = quarantined(settings, ORDERS)
    bad_numbers = sorted(entry["row"]["order_id"] for entry in entries)
    assert bad_numbers == list(range(4, 101, 4))
    again = land(settings, ORDERS, table(*rows).to_reader(), AS_OF + HOUR)
    assert (again.inserted, again.quarantined, again.table_version) == (0, 0, 0)
    assert list((settings.cache).iterdir()) == []


@pytest.mark.parametrize("bad_number", range(1, 101, 9))
def test_one_rejected_batch_of_many_changes_nothing_and_is_shown(
    suite, tmp_path, small_batches, bad_number
):
    low = AMOUNT["kwargs"] | {"min_value": -2.0, "mostly": 0.9}
    whole = {"column": "customer_id", "max_value": 1_000}
    suite(
        {"type": BETWEEN, "kwargs": low},
        {"type": "expect_column_max_to_be_between", "kwargs": whole},
    )
    settings = new_settings(tmp_path)
    first = order(1_000, 1, AS_OF - DAY)
    land(settings, ORDERS, table(first).to_reader(), AS_OF)
    rows = [order(number, number, AS_OF - DAY) for number in range(1, 101)]
    rows[bad_number - 1]["customer_id"] = 123_456
    rows[50]["dollar_value"] = -5.0
    with pytest.raises(BatchRejectedError, match=r"expect_column_max.*123456"):
        land(settings, ORDERS, table(*rows).to_reader(), AS_OF + HOUR)
    raw = raw_table(settings, ORDERS)
    assert (raw.version, raw.read().num_rows) == (0, 1)
    assert not quarantine_table(settings, ORDERS).exists
    page = settings.data_docs / "orders" / "index.html"
    assert "123456" in page.read_text()


def test_the_last_row_of_a_key_counts_whatever_batch_it_is_in(
    suite, tmp_path, small_batches
):
    suite(AMOUNT)
    settings = new_settings(tmp_path)
    first_rows = [order(number, 1, AS_OF - DAY, 1.0) for number in range(100)]
    corrections = [order(number, 1, AS_OF - DAY, 2.0) for number in range(0, 100, 3)]
    report = land(settings, ORDERS, table(*first_rows, *corrections).to_reader(), AS_OF)
    assert report.inserted == 100
    assert "keys with several contents in one delivery: 34, such as" in report.summary()
    landed = raw_table(settings, ORDERS).read()
    amounts = dict(
        zip(
            *landed.select(["order_id", "dollar_value"]).to_pydict().values(),
            strict=True,
        )
    )
    assert amounts == {number: 1.0 if number % 3 else 2.0 for number in range(100)}


def test_rows_without_a_key_are_spread_over_the_batches(suite, tmp_path, small_batches):
    never_null = {"column": "order_id", "mostly": 0.5}
    suite({"type": validation.NOT_NULL, "kwargs": never_null})
    settings = new_settings(tmp_path)
    numbers = [number if number % 5 else None for number in range(500)]
    rows = [order(number, 1, AS_OF - DAY) for number in numbers]
    report = land(settings, ORDERS, table(*rows).to_reader(), AS_OF)
    assert (report.inserted, report.quarantined) == (400, 100)

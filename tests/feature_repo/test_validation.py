"""What happens to a row that breaks a rule, whether an ingest or an event brings it."""

import json
import re
from contextlib import closing
from dataclasses import replace

import great_expectations as gx
import pytest

from core.errors import BatchRejectedError, DataError
from feature_engine.ingest import landing
from feature_engine.ingest.landing import land
from feature_engine.ingest.quarantine import quarantine_table, quarantined
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from feature_repo.rules import NOT_NULL, DatasetRules
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.installation import Events
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, order, order_table
from tests.support.feature_engine.suites import (
    RULES_OF_DELIVERIES,
    RULES_OF_ROWS,
    between,
    rule,
)

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
        assert len(report.rejections) == failures
    suite(suite_rule | WARNING)
    delivery, events = validations(rows)
    assert delivery.bad_rows == events.bad_rows == {}
    assert delivery.rejections == events.rejections == []
    assert len(delivery.warnings) == failures


def row_count(settings):
    return raw_table(settings, ORDERS).read().num_rows


@pytest.mark.parametrize(("suite_rule", "bad_value"), RULES_OF_ROWS)
def test_a_row_that_breaks_a_rule_of_single_rows_is_set_aside_however_it_comes(
    suite, applied, suite_rule, bad_value
):
    name = f"{suite_rule['type']}(number_of_cds)"
    bad_order = order(2, 7, AS_OF - DAY) | {"number_of_cds": bad_value}
    rows = order_table(order(1, 7, AS_OF - DAY), bad_order)
    suite(suite_rule)
    message = f"{name}: 1 rows, such as [{json.dumps(bad_value)}]"
    with pytest.raises(BatchRejectedError, match=re.escape(message)):
        deliver(applied, rows)
    assert not raw_table(applied, ORDERS).exists
    limits = suite_rule["kwargs"] | {"mostly": 0.9}
    suite(suite_rule | {"kwargs": limits})
    report = deliver(applied, rows)
    assert (report.inserted, report.quarantined) == (1, 1)
    with closing(Events(applied, ORDERS)) as events:
        events.receives(AS_OF + HOUR, bad_order | {"order_id": 3})
    assert row_count(applied) == 1
    of_delivery, of_event = [row["rules"] for row in quarantined(applied, ORDERS)]
    assert of_delivery == name
    # Serving refuses a null that a rule forbids, and so does the consumer, before any rule.
    assert of_event == name or ("number_of_cds" in of_event and bad_value is None)


@pytest.mark.parametrize(("suite_rule", "message"), RULES_OF_DELIVERIES)
def test_a_rule_over_many_rows_stops_a_delivery_and_judges_no_event(
    suite, applied, suite_rule, message
):
    first, second, third = [
        order(number, 7, AS_OF - DAY) | {"number_of_cds": 9} for number in (1, 2, 3)
    ]
    suite(suite_rule)
    with pytest.raises(BatchRejectedError, match=rf"{suite_rule['type']}.*{message}"):
        deliver(applied, order_table(first, second))
    assert not raw_table(applied, ORDERS).exists
    deliver(applied, order_table(first | {"number_of_cds": 2}))
    with closing(Events(applied, ORDERS)) as events:
        events.receives(AS_OF + HOUR, second, third)
    assert row_count(applied) == 3
    assert not quarantine_table(applied, ORDERS).exists


TYPO = AMOUNT | {"type": "expect_typo"}
RULES = [AMOUNT, TYPO, between("dollar_value", mosty=0.9), "a text"]
AT_FAULT = [
    "expectations/orders.json: rule 2: .*expect_typo not found",
    "expectations/orders.json: rule 3: .*mosty extra fields not permitted",
    'expectations/orders.json: rule 4: .*found "a text"',
]
UNREADABLE = ["expectations/orders.json: expected Great Expectations' JSON"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ('{"expectations": ', UNREADABLE),
        ('{"expect": []}', UNREADABLE),
        ("[]", UNREADABLE),
        (json.dumps({"expectations": RULES}), AT_FAULT),
    ],
)
def test_a_suite_with_an_error_changes_nothing_and_each_rule_at_fault_is_named(
    suite, settings, text, messages
):
    suite(text=text)
    with pytest.raises(DataError) as error:
        deliver(settings, some_orders(1, bad_count=0))
    assert all(re.search(message, str(error.value)) for message in messages)
    assert "\n" not in str(error.value)
    tables = (raw_table(settings, ORDERS), quarantine_table(settings, ORDERS))
    assert [table.version for table in tables] == [-1, -1]


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


def test_a_second_dataset_has_the_rows_and_rules_of_the_first(suite, settings):
    suite(AMOUNT)
    sizes = replace(
        ORDERS, name="sizes", entity="number_of_cds", rows_of="orders", views={}
    )
    rows = pull(settings, ORDERS, AS_OF).read_all()
    assert pull(settings, sizes, AS_OF).read_all().equals(rows)
    delivery = some_orders(30, bad_count=1).to_reader()
    with pytest.raises(
        BatchRejectedError, match=r"sizes: the batch .* expectations/orders\.json"
    ):
        land(settings, sizes, delivery, AS_OF)


def test_the_last_row_of_each_key_lands_or_is_set_aside_in_one_commit_of_all_batches(
    suite, settings, small_batches
):
    suite(
        between("dollar_value", min_value=0, mostly=0.2),
        rule(NOT_NULL, "order_id", mostly=0.5),
    )
    old_orders = [order(n, n, AS_OF - DAY, 9.0) for n in range(1, 101, 5)]
    orders = [
        order(n if n % 5 else None, n, AS_OF - DAY, 1.0 if n % 4 else -1.0)
        for n in range(1, 101)
    ]
    rows = order_table(*old_orders, *orders, orders[0])
    report = deliver(settings, rows)
    assert (report.inserted, report.quarantined, report.table_version) == (60, 40, 0)
    (warning,) = report.warnings
    assert "keys with several contents in one delivery: 20, such as " in warning
    landed = raw_table(settings, ORDERS).read()
    assert set(landed["dollar_value"].to_pylist()) == {1.0}
    numbers = landed["order_id"].to_pylist()
    aside = [row["row"]["customer_id"] for row in quarantined(settings, ORDERS)]
    assert sorted(numbers) == [n for n in range(1, 101) if n % 4 and n % 5]
    assert sorted(numbers + aside) == [*range(1, 101)]
    report = deliver(settings, rows, AS_OF + HOUR)
    assert (report.inserted, report.quarantined, report.table_version) == (0, 0, 0)
    assert report.warnings == ()
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


PAIRS = {
    "greater": ("expect_column_pair_values_a_to_be_greater_than_b", {}),
    "equal": ("expect_column_pair_values_to_be_equal", {}),
    "never ignored": (
        "expect_column_pair_values_to_be_equal",
        {"ignore_row_if": "neither"},
    ),
}


@pytest.mark.parametrize(
    "columns", [("dollar_value", "number_of_cds"), ("number_of_cds", "dollar_value")]
)
@pytest.mark.parametrize(("kind", "more"), PAIRS.values(), ids=[*PAIRS])
def test_a_pair_rule_judges_a_null_as_gx_does(suite, columns, kind, more):
    """GX's own verdict is that on pandas' usual frame, in which a null is a NaN."""
    pairs = [(1.5, 1), (None, 1), (2.0, None), (None, None), (0.5, 2**53 + 1)]
    rows = order_table(
        *(
            order(number, number, AS_OF - DAY, amount) | {"number_of_cds": count}
            for number, (amount, count) in enumerate(pairs)
        )
    )
    first, second = columns
    kwargs = {"column_A": first, "column_B": second, "mostly": 0.01} | more
    suite({"type": kind, "kwargs": kwargs}, rule(NOT_NULL, "order_id"))
    expected = [*of_gx(rows.to_pandas(), kind, kwargs)]
    for validation in validations(rows):
        assert sorted(validation.bad_rows) == expected
        assert validation.report["statistics"]["evaluated_expectations"] >= 2


def of_gx(frame, kind, kwargs):
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("p").add_dataframe_asset("a")
    batch = asset.add_batch_definition_whole_dataframe("b").get_batch(
        {"dataframe": frame}
    )
    suite = gx.ExpectationSuite("s", [{"type": kind, "kwargs": kwargs}])
    (result,) = batch.validate(suite, result_format="COMPLETE").results
    return result.result["unexpected_index_list"]


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (
            "expect_multicolumn_sum_to_equal",
            {"column_list": ["dollar_value", "number_of_cds"], "sum_total": 3},
        ),
        (
            "expect_column_kl_divergence_to_be_less_than",
            {
                "column": "number_of_cds",
                "threshold": 99.0,
                "partition_object": {"bins": [0, 5, 10], "weights": [0.5, 0.5]},
            },
        ),
    ],
)
def test_a_rule_over_many_rows_is_evaluated_beside_nulls(suite, kind, kwargs):
    rows = order_table(
        order(1, 1, AS_OF - DAY, 1.0) | {"number_of_cds": 2},
        order(2, 2, AS_OF - DAY, None) | {"number_of_cds": None},
    )
    suite({"type": kind, "kwargs": kwargs, "severity": "warning"})
    DatasetRules(ORDERS).validate(rows, AS_OF)


MANY_ROWS = {
    "expect_column_value_z_scores_to_be_less_than": {
        "threshold": 3,
        "double_sided": True,
    },
    "expect_column_quantile_values_to_be_between": {
        "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[0, 10]]}
    },
    "expect_column_stdev_to_be_between": {"min_value": 0},
    "expect_column_mean_to_be_between": {"min_value": 0},
    "expect_column_median_to_be_between": {"min_value": 0},
    "expect_column_max_to_be_between": {"min_value": 0},
    "expect_column_min_to_be_between": {"min_value": 0},
    "expect_column_kl_divergence_to_be_less_than": {
        "threshold": 99.0,
        "partition_object": {"bins": [0, 5, 10], "weights": [0.5, 0.5]},
    },
}


@pytest.mark.parametrize("column", ["dollar_value", "number_of_cds"])
@pytest.mark.parametrize(("kind", "kwargs"), MANY_ROWS.items(), ids=[*MANY_ROWS])
def test_a_column_without_values_or_spread_breaks_no_rule(suite, kind, kwargs, column):
    suite({"type": kind, "kwargs": kwargs | {"column": column}})
    rules = DatasetRules(ORDERS)
    for values in ([2], [None], [2, None], [2, 2]):
        rows = order_table(
            *(
                order(number, number, AS_OF - DAY) | {column: value}
                for number, value in enumerate(values)
            )
        )
        assert rules.validate(rows, AS_OF).rejections == [], values


@pytest.mark.parametrize("kind", ["contain", "equal"])
def test_a_set_that_a_column_lacks_is_no_missing_figure(suite, kind):
    name = f"expect_column_distinct_values_to_{kind}_set"
    suite(rule(name, "number_of_cds", value_set=[1, 99]))
    validation = DatasetRules(ORDERS).validate(some_orders(3, 0), AS_OF)
    assert len(validation.rejections) == 1

"""Rules of a suite."""

from feature_repo.rules import NOT_NULL


def rule(expectation, column, **limits):
    return {"type": expectation, "kwargs": {"column": column, **limits}}


def between(column, **limits):
    return rule("expect_column_values_to_be_between", column, **limits)


RULES_OF_ROWS = [
    (rule(NOT_NULL, "number_of_cds"), None),
    (between("number_of_cds", min_value=1, max_value=8), 9),
    (rule("expect_column_values_to_be_in_set", "number_of_cds", value_set=[1, 2]), 9),
]
"""And a value that breaks each."""


RULES_OF_DELIVERIES = [
    (rule("expect_column_values_to_be_unique", "customer_id"), r"2 rows.*\[7, 7\]"),
    (
        rule(
            "expect_column_distinct_values_to_be_in_set",
            "number_of_cds",
            value_set=[1, 2],
        ),
        r"\[1, 2\].*found values such as \[9\]",
    ),
    (
        rule(
            "expect_column_proportion_of_unique_values_to_be_between",
            "customer_id",
            min_value=0.9,
        ),
        r"0\.9.*found 0\.5",
    ),
    (
        rule(
            "expect_column_quantile_values_to_be_between",
            "number_of_cds",
            quantile_ranges={"quantiles": [0.5], "value_ranges": [[0, 5]]},
        ),
        r"\[0\.5\].*found .*\[9",
    ),
]
"""And what is said of two orders of customer 7, of 9 CDs each."""

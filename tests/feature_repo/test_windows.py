"""Declared windows against brute force from the rows themselves, and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis import _

from feature_repo.datasets.orders import customer_features_view
from feature_repo.windows import Window, Windows
from tests.feature_repo.test_change_points import TICK, TIME, moments

Row = dict[str, Any]
PERIODS = (timedelta(hours=12), timedelta(days=30), None)
FUNCTIONS = ("sum", "mean", "min", "max", "first", "last")
WINDOWS = [
    *(Window(None, "count", period) for period in PERIODS),
    *(Window("paid", name, period) for name in FUNCTIONS for period in PERIODS),
    Window("paid", "count", PERIODS[1]),
    Window("pieces", "sum", PERIODS[1]),
    Window("kind", "last", PERIODS[1]),
    Window("late", "mean", PERIODS[1]),
    Window("at", "max", PERIODS[1]),
    Window("paid", "sum", PERIODS[1], where=_.late, name="paid_late"),
    Window(_.paid * _.pieces, "sum", name="worth"),
]
FEATURES = Windows(
    "id", "at", WINDOWS, {"per_piece": _.worth / _.pieces_sum_30d.nullif(0)}
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(1, 3),
            "at": moments,
            "paid": st.sampled_from([None, 0.01, 14.96, -3.0, 1286.01]),
            "pieces": st.sampled_from([None, 1, 7]),
            "kind": st.sampled_from([None, "a", "b"]),
            "late": st.sampled_from([None, True, False]),
        }
    ),
    min_size=1,
    max_size=25,
)
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "at": TIME,
        "paid": pa.float64(),
        "pieces": pa.int64(),
        "kind": pa.string(),
        "late": pa.bool_(),
        "ingested_at": TIME,
    }
)


ROW: Row = {
    "id": 1,
    "at": datetime(2026, 1, 1, tzinfo=UTC),
    "paid": 1.0,
    "pieces": 1,
    "kind": "a",
    "late": True,
}


def as_table(raw_rows: list[Row]) -> ibis.Table:
    rows_with_arrival = [row | {"ingested_at": row["at"]} for row in raw_rows]
    return ibis.memtable(pa.Table.from_pylist(rows_with_arrival, schema=SCHEMA))


def column_value(window: Window, row: Row) -> Any:
    """What a row adds to a window; None if it does not count."""
    if window.where is not None and not row["late"]:
        return None
    if window.column is None:
        return 1
    if window.name == "worth":
        return (
            None
            if None in (row["paid"], row["pieces"])
            else row["paid"] * row["pieces"]
        )
    if window.column == "at":
        return int((row["at"] - datetime(1970, 1, 1, tzinfo=UTC)) / TICK)
    return row[window.column]


def brute_force(window: Window, history: list[Row], at: datetime) -> Any:
    """The value at `at` from the rows of one entity."""
    begin = (
        datetime.min.replace(tzinfo=UTC)
        if window.period is None
        else at - window.period
    )
    dated = [
        (row["at"], column_value(window, row))
        for row in history
        if begin < row["at"] <= at
    ]
    dated = [(time, value) for time, value in dated if value is not None]
    values = [value for _time, value in dated]
    by_hand = {
        "count": lambda: len(values),
        "sum": lambda: sum(values),
        "mean": lambda: sum(values) / len(values),
        "min": lambda: min(values),
        "max": lambda: max(values),
        "first": lambda: min(dated)[1],
        "last": lambda: max(dated)[1],
    }
    return (
        by_hand[window.function]()
        if values or window.function in {"count", "sum"}
        else None
    )


@settings(max_examples=25, deadline=None)
@given(rows, st.lists(moments, min_size=1, max_size=4))
def test_a_declared_window_is_what_its_rows_say_at_any_moment(raw_rows, times):
    view_rows = FEATURES(as_table(raw_rows)).to_pyarrow().to_pylist()
    assert_brute_force(view_rows, raw_rows, times)


def assert_brute_force(
    view_rows: list[Row], raw_rows: list[Row], times: list[datetime]
) -> None:
    view_rows.sort(key=lambda row: row["event_timestamp"])
    ends = [
        row["at"] + (period or timedelta(0)) for row in raw_rows for period in PERIODS
    ]
    edges = [end + tick for end in ends for tick in (-TICK, timedelta(0), TICK)]
    for entity in {row["id"] for row in raw_rows}:
        history = [row for row in raw_rows if row["id"] == entity]
        values = [row for row in view_rows if row["id"] == entity]
        assert len({row["event_timestamp"] for row in values}) == len(values)
        for at in {*times, *edges}:
            past = [row for row in values if row["event_timestamp"] <= at]
            assert bool(past) == any(row["at"] <= at for row in history)
            for window in WINDOWS if past else ():
                expected = brute_force(window, history, at)
                if isinstance(expected, float):
                    expected = pytest.approx(expected, rel=1e-9, abs=1e-9)
                assert past[-1][window.name] == expected, (window.name, at)


def test_names_types_and_tags_follow_from_the_declaration():
    types = {
        name: str(kind) for name, kind in FEATURES(as_table([ROW])).schema().items()
    }
    expected = {
        "rows_count_43200s": "int64",
        "paid_sum_ever": "float64",
        "late_mean_30d": "float64",
        "pieces_sum_30d": "int64",
        "at_max_30d": "int64",
        "kind_last_30d": "string",
        "per_piece": "float64",
    }
    assert {name: types[name] for name in expected} == expected
    assert str(WINDOWS[-2]) == "sum(paid) over 30d where _.late"
    assert (
        customer_features_view.tags["total_spend_30d"] == "sum(dollar_value) over 30d"
    )
    published = {
        field.name: str(field.dtype) for field in customer_features_view.features
    }
    assert published["avg_order_value"] == "Float64"
    assert published["customer_segment"] == "String"


def test_a_derived_feature_takes_the_place_of_a_window_of_its_name():
    count = Window(None, "count", name="orders")
    view = Windows(
        "id", "at", [count], {"orders": _.orders.cast("float64"), "twice": _.orders * 2}
    )
    (row,) = view(as_table([ROW])).to_pyarrow().to_pylist()
    assert isinstance(row["orders"], float)
    assert (row["orders"], row["twice"]) == (1.0, 2)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            lambda: Window("paid", "sum", timedelta(days=-1)),
            "expected a period above 0, found -1",
        ),
        (lambda: Window("paid", "median"), "expected one of count, sum, mean, "),
        (lambda: Window("payed", "sum"), r"sum\(payed\) over ever: .*'payed' is not"),
        (lambda: Window("kind", "mean"), "expected a column of numbers, found string"),
        (lambda: Window("paid", "sum", where=_.early), "has no attribute 'early'"),
    ],
)
def test_a_window_that_cannot_be_is_one_line_that_names_it(window, message):
    with pytest.raises(ValueError, match=message):
        Windows("id", "at", [window()])(as_table([ROW]))


def test_a_window_without_a_column_only_counts():
    with pytest.raises(ValueError, match="window rows_sum_ever: sum needs a column"):
        Window(None, "sum")
    assert Window(None, "count").name == "rows_count_ever"

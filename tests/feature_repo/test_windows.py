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

from feature_repo.datasets import load_dataset
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
FEATURES = Windows("id", "at", WINDOWS, {"per_piece": _.worth / _.pieces_sum_30d.nullif(0)})
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


def as_table(given_rows: list[Row]) -> ibis.Table:
    arrived = [row | {"ingested_at": row["at"]} for row in given_rows]
    return ibis.memtable(pa.Table.from_pylist(arrived, schema=SCHEMA))


def held(history: list[Row], at: datetime, period: timedelta | None) -> list[Row]:
    return [r for r in history if r["at"] <= at and (period is None or r["at"] > at - period)]


def brute_force(window: Window, history: list[Row], at: datetime) -> object:
    """The value at `at` from the rows of one entity."""
    inside = held(history, at, window.period)
    if window.where is not None:
        inside = [row for row in inside if row["late"]]
    if window.column is None:
        return len(inside)
    if window.name == "worth":
        products = [(r["at"], r["paid"], r["pieces"]) for r in inside]
        dated = [(t, a * b) for t, a, b in products if None not in (a, b)]
    else:
        dated = [(r["at"], r[window.column]) for r in inside if r[window.column] is not None]
    if window.name.startswith("at_"):
        dated = [(t, int((t - datetime(1970, 1, 1, tzinfo=UTC)) / TICK)) for t, _value in dated]
    values = [value for _time, value in dated]
    if window.function in {"count", "sum"}:
        return len(values) if window.function == "count" else sum(values)
    by_hand = {
        "mean": lambda: sum(values) / len(values),
        "min": lambda: min(values),
        "max": lambda: max(values),
        "first": lambda: min(dated)[1],
        "last": lambda: max(dated)[1],
    }
    return by_hand[window.function]() if values else None


@settings(max_examples=25, deadline=None)
@given(rows, st.lists(moments, min_size=1, max_size=4))
def test_a_declared_window_is_what_its_rows_say_at_any_moment(given_rows, asked):
    found = FEATURES(as_table(given_rows)).to_pyarrow().to_pylist()
    assert_brute_force(found, given_rows, asked)


def assert_brute_force(found: list[Row], given_rows: list[Row], asked: list[datetime]) -> None:
    found.sort(key=lambda row: row["event_timestamp"])
    edges = [r["at"] + (period or timedelta(0)) + tick for r in given_rows for period in PERIODS
             for tick in (-TICK, timedelta(0), TICK)]  # fmt: skip
    for entity in {row["id"] for row in given_rows}:
        history = [row for row in given_rows if row["id"] == entity]
        mine = [row for row in found if row["id"] == entity]
        assert len({row["event_timestamp"] for row in mine}) == len(mine)
        for at in {*asked, *edges}:
            known = [row for row in mine if row["event_timestamp"] <= at]
            assert bool(known) == bool(held(history, at, None))
            for window in WINDOWS if known else ():
                expected = brute_force(window, history, at)
                if isinstance(expected, float):
                    expected = pytest.approx(expected, rel=1e-9, abs=1e-9)
                assert known[-1][window.name] == expected, (window.name, at)


def test_names_types_and_what_is_published_follow_from_the_declaration():
    types = {name: str(kind) for name, kind in FEATURES(as_table([ROW])).schema().items()}
    del types["id"], types["event_timestamp"], types["created"]
    assert types["rows_count_43200s"] == "int64"
    assert types["paid_sum_ever"] == types["paid_mean_30d"] == types["late_mean_30d"] == "float64"
    assert types["pieces_sum_30d"] == types["at_max_30d"] == "int64"
    assert types["kind_last_30d"] == "string"
    assert types["per_piece"] == "float64"
    assert customer_features_view.tags["total_spend_30d"] == "sum(dollar_value) over 30d"
    published = {field.name: str(field.dtype) for field in customer_features_view.features}
    assert published["avg_order_value"] == "Float64"
    assert published["customer_segment"] == "String"
    assert str(WINDOWS[-2]) == "sum(paid) over 30d where _.late"


ROW = {"id": 1, "at": datetime(2026, 1, 1, tzinfo=UTC), "paid": 1.0, "pieces": 1, "kind": "a",
       "late": True}  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        (lambda: Window("paid", "sum", timedelta(days=-1)), "expected a period above 0, found -1"),
        (lambda: Window("paid", "median"), "expected one of count, sum, mean, "),
        (lambda: Window(None, "sum"), "sum needs a column"),
        (lambda: Window("payed", "sum"), r"sum\(payed\) over ever: .*'payed' is not"),
        (lambda: Window("kind", "mean"), "expected a column of numbers, found string"),
        (lambda: Window("paid", "sum", where=_.early), "has no attribute 'early'"),
    ],
)
def test_what_a_window_cannot_be_is_one_line_that_names_it(declared, told):
    with pytest.raises(ValueError, match=told):
        Windows("id", "at", [declared()])(as_table([ROW]))


def test_a_typo_in_a_window_is_a_finding_of_its_file(monkeypatch):
    """As `gyre check` says it: the module cannot be imported."""
    orders = load_dataset("orders")
    wrong = Windows("customer_id", "order_ts", [Window("dollar_valu", "sum")])
    monkeypatch.setitem(orders.views, "customer_features", wrong)
    with pytest.raises(ValueError, match="dollar_valu_sum_ever"):
        orders.views["customer_features"](ibis.table(ibis.Schema.from_pyarrow(orders.schema)))

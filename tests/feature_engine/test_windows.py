"""Declared windows against brute force from the rows themselves."""

from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pytest
from feast import Entity, ValueType
from feast.types import Int64, String
from hypothesis import given, settings
from hypothesis import strategies as st

from core.timestamps import microseconds
from feature_engine.windows import Window, Windows, feature_view
from feature_repo.datasets import load_dataset
from tests.support.feature_engine.window_features import (
    BEGIN,
    FEATURES,
    FUNCTIONS,
    PERIODS,
    WINDOWS,
    as_table,
)

TICK = timedelta(microseconds=1)
# Days and microseconds next to them, so that window edges, ties and same-day orders are common.
moments = st.builds(
    lambda day, tick: BEGIN + timedelta(days=day) + tick * TICK,
    st.integers(0, 240),
    st.sampled_from([0, 0, 0, 1, -1, 43_200_000_000]),
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


def column_value(window, row):
    """What a row adds to a window; None if it does not count."""
    if window.where is not None and not row["late"]:
        return None
    if window.column is None:
        return 1
    if window.name == "worth":
        pair = (row["paid"], row["pieces"])
        return None if None in pair else row["paid"] * row["pieces"]
    value = row[window.column]
    return microseconds(value) if window.column == "at" else value


def brute_force(window, history, at):
    """The value at `at` from the rows of one entity."""
    period = window.period or timedelta(days=10_000)
    dated = []
    for row in history:
        value = column_value(window, row)
        if at - period < row["at"] <= at and value is not None:
            dated.append((row["at"], value))
    if not dated and window.function not in ("count", "sum"):
        return None
    values = [value for _time, value in sorted(dated)]
    return FUNCTIONS[window.function](values)


def assert_computed_alone(table, values_by_entity, at):
    """What is computed for one moment is what the view has around it."""
    around = {entity: [] for entity in values_by_entity}
    for row in FEATURES.around(table, at).to_pyarrow().to_pylist():
        around[row["id"]].append(row)
    for entity, values in values_by_entity.items():
        past = [row for row in values if row["event_timestamp"] <= at]
        times = [
            row["event_timestamp"] for row in values if row["event_timestamp"] > at
        ]
        computed = around[entity]
        assert [row for row in computed if row["event_timestamp"] <= at] == past[-1:]
        later = [
            row["event_timestamp"] for row in computed if row["event_timestamp"] > at
        ]
        assert later == times[:1]


MOMENTS = st.lists(moments, min_size=1, max_size=4)


@pytest.mark.journey
@settings(max_examples=4, deadline=None)
@given(rows, MOMENTS)
def test_a_declared_window_equals_brute_force_at_any_moment(raw_rows, times):
    check_windows(raw_rows, times)


@pytest.mark.nightly
@settings(max_examples=100, deadline=None)
@given(rows, MOMENTS)
def test_a_declared_window_equals_brute_force_for_the_rows_of_the_day(raw_rows, times):
    check_windows(raw_rows, times)


def check_windows(raw_rows, times):
    table = as_table(raw_rows)
    view_rows = FEATURES(table).to_pyarrow().to_pylist()
    view_rows.sort(key=lambda row: row["event_timestamp"])
    periods = [timedelta(0), *PERIODS[:2]]
    ends = [row["at"] + period for row in raw_rows for period in periods]
    edges = [end + tick for end in ends for tick in (-TICK, timedelta(0), TICK)]
    values_by_entity = {row["id"]: [] for row in raw_rows}
    for row in view_rows:
        values_by_entity[row["id"]].append(row)
    for at in {*times, *edges[::20]}:
        assert_computed_alone(table, values_by_entity, at)
    for entity, values in values_by_entity.items():
        history = [row for row in raw_rows if row["id"] == entity]
        assert len({row["event_timestamp"] for row in values}) == len(values)
        for at in {*times, *edges}:
            past = [row for row in values if row["event_timestamp"] <= at]
            assert bool(past) == any(row["at"] <= at for row in history)
            for window in WINDOWS if past else ():
                expected = brute_force(window, history, at)
                if isinstance(expected, float):
                    expected = pytest.approx(expected, rel=1e-9, abs=1e-9)
                assert past[-1][window.name] == expected, (window.name, at)


def test_the_mode_of_texts_is_a_text_and_one_of_fractions_is_refused():
    orders = load_dataset("orders")
    orders = replace(orders, schema=orders.schema.append(pa.field("kind", pa.string())))
    entity = Entity(name="x", join_keys=["customer_id"], value_type=ValueType.INT64)

    def field(column):
        view = Windows("customer_id", "order_ts", [Window(column, "mode", name="top")])
        dataset = replace(orders, views={"view": view})
        (top,) = feature_view(dataset, "view", [entity]).features
        return top

    assert field("kind").dtype == String
    assert field("order_ts").dtype == Int64
    with pytest.raises(ValueError, match=r"window top: .* booleans or times.*float64"):
        field("dollar_value")

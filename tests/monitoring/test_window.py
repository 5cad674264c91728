"""What counts in a window: entities once, by what a plain loop over the rows says."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from monitoring.collect import PREDICTIONS, predictions
from monitoring.window import LENGTH, window
from tests.conftest import new_settings
from tests.monitoring.log import FAILURE, NOON, answer

KINDS = {
    "place": "int64",
    "segment": "string",
    'a spend\'s "most"': "float64",
    "flag": "bool",
    "since": "timestamp",
}
VALUES = {
    "string": ["a", 'größer: "1"', None],
    "timestamp": ["2026-11-20T12:00:00Z", None],
    "bool": [True, False, None],
    "float64": [0, 3, -1.25, None],
}


@pytest.fixture
def table(tmp_path):
    return predictions(new_settings(tmp_path))


def fill(table, rows):
    stored = [row | {"features": json.dumps(row["features"])} for row in rows]
    times = {"received", "as_of"}
    for row in stored:
        row |= {name: datetime.fromisoformat(row[name]) for name in times}
    table.insert(pa.Table.from_pylist(stored, PREDICTIONS), "request_id")


def take_window(table, kinds=KINDS, until=NOON, classes=()):
    return window(table, "m", "1", {"1", "2"}, kinds, until, classes)


def draw_row(number, draw):
    """A row that counts, or one of each way not to; `place` says which it is."""
    features = {"place": number}
    for name, kind in [*KINDS.items()][1:]:
        features[name] = draw.choice(VALUES[kind])
    odd = draw.random()
    if odd < 0.05:
        features['a spend\'s "most"'] = "x"
    elif odd < 0.1:
        del features["segment"]
    # Few moments, so that some are the same: at both ends of the window, and beyond.
    hours = draw.choice([-25, -24, *range(-23, 1), 1])
    return answer(
        f"r{number}",
        NOON + timedelta(hours=hours),
        model=draw.choice("mmmmn"),
        version=draw.choice("11111123"),
        entity=draw.choice([None, *(f"e{n}" for n in range(40))]),
        features=features,
        features_from=draw.choice(["online"] * 9 + ["defaults"]),
        probability=draw.choice([None, 0.25, 0.75]),
        prediction=float(number),
        in_population=draw.random() < 0.9,
    )


def by_hand(rows):
    """The last row of each entity, and how many are left out by why."""
    last = {}
    counts = Counter()
    for row in rows:
        received = datetime.fromisoformat(row["received"])
        if row["model"] != "m" or not NOON - LENGTH < received <= NOON:
            continue
        problems = {
            "of an unknown version": row["version"] not in "12",
            "of another version": row["version"] != "1",
            "outside the population": not row["in_population"],
            "without an entity": row["entity"] is None,
            "answered from defaults": row["features_from"] == "defaults",
        }
        reason = next((text for text, is_so in problems.items() if is_so), None)
        if reason is None:
            former = last.get(row["entity"])
            reason = "followed by a later one" if former else None
            if former is None or former["received"] <= row["received"]:
                last[row["entity"]] = row
        counts[reason] += 1
    del counts[None]
    usable = [row for row in last.values() if fits(row["features"])]
    counts["with other features"] = len(last) - len(usable)
    return usable, dict(counts)


def fits(features):
    return features.keys() == KINDS.keys() and "x" not in features.values()


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_a_loop_over_the_rows_says(table, seed):
    draw = random.Random(seed)
    rows = [draw_row(number, draw) for number in range(900)]
    for first in range(0, 900, 150):
        fill(table, rows[first : first + 150])
    order = {row: n for n, row in enumerate(table.read()["request_id"].to_pylist())}
    rows.sort(key=lambda row: order[row["request_id"]])
    usable, left_out = by_hand(rows)
    last_answers = take_window(table)
    assert last_answers.left_out == left_out
    frame = last_answers.rows.set_index("place")
    assert {*frame.index} == {row["features"]["place"] for row in usable}
    for row in usable:
        values = frame.loc[row["features"]["place"]]
        for name in [*KINDS][1:]:
            expected = row["features"][name]
            assert values[name] == expected or (
                values.isna()[name] and expected is None
            )
        score = row["probability"]
        assert values["score"] == (row["prediction"] if score is None else score)
    kinds = [str(last_answers.rows[name].dtype) for name in KINDS]
    assert kinds == ["float64", "object", "float64", "float64", "object"]
    assert [*last_answers.rows] == [*KINDS, "score"]  # no entity


def test_of_many_classes_a_window_names_what_was_said(table):
    rows = [
        answer(f"{n}", prediction=n % 3, probability=0.4 + n / 100, features={"a": n})
        for n in range(4)
    ]
    fill(table, [*rows, answer("failed", NOON, **FAILURE)])
    classes = ("early", "on_time", "late")
    last_answers = take_window(table, {"a": "int64"}, classes=classes).rows.sort_values(
        "a"
    )
    assert last_answers["predicted_class"].tolist() == [
        "early",
        "on_time",
        "late",
        "early",
    ]
    assert last_answers["score"].tolist() == pytest.approx([0.4, 0.41, 0.42, 0.43])

"""A window is what a plain loop over the rows says."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from monitoring.collect import PREDICTIONS, predictions, spread_out
from monitoring.window import LENGTH, window
from tests.conftest import new_settings

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
KINDS = {"orders": "int64", "segment": "string", 'a spend\'s "most"': "float64"}
KINDS |= {"flag": "bool", "since": "timestamp"}
VALUES = {"string": ["a", "b", None], "timestamp": ["2026-11-20T12:00:00Z", None],
          "bool": [True, False, None]}  # fmt: skip


def drawn(number, draw):
    """A row that counts, or one of each way not to."""
    features = {
        name: draw.choice([None, 7, 1.5, "x", 'größer: "1"'] if draw.random() < 0.05 else
                          VALUES.get(kind, [0, 3, -1.25, None]))
        for name, kind in KINDS.items()
    }  # fmt: skip
    names = list(features)
    draw.shuffle(names)
    features = {name: features[name] for name in names}
    if draw.random() < 0.05:
        features = features | {"more": 1} if draw.random() < 0.5 else {"orders": 1}
    return {
        "request_id": f"r{number}", "role": "production", "model": draw.choice("mmmmn"),
        "version": draw.choice("11111123"), "received": at(draw), "as_of": at(draw),
        "entity": draw.choice([None, *(f"e{n}" for n in range(40))]), "features": features,
        "features_from": draw.choice(["online"] * 9 + ["defaults"]),
        "probability": draw.choice([None, 0.25, 0.75]), "prediction": float(number),
        "in_population": draw.random() < 0.9,
    }  # fmt: skip


def at(draw):
    """Few moments, so that some are the same: at both ends of the window, and beyond."""
    return NOW + timedelta(hours=draw.choice([-25, -24, *range(-23, 1), 1]))


def by_hand(rows):
    """The last row of each entity, and how many are left out by why."""
    last, why = {}, Counter()
    for row in rows:
        features = row["features"]
        if row["model"] != "m" or not NOW - LENGTH < row["received"] <= NOW:
            continue
        for reason, bad in (
            ("of an unknown version", row["version"] not in "12"),
            ("of another version", row["version"] != "1"),
            ("outside the population", not row["in_population"]),
            ("without an entity", row["entity"] is None),
            ("answered from defaults", row["features_from"] == "defaults"),
            ("with other features", features.keys() != KINDS.keys()),
        ):
            if bad:
                why[reason] += 1
                break
        else:
            known = last.get(row["entity"])
            why["followed by a later one"] += known is not None
            if known is None or known["received"] <= row["received"]:
                last[row["entity"]] = row
    fitting = {entity: row for entity, row in last.items() if fits(row["features"])}
    why["with other features"] += len(last) - len(fitting)
    return fitting, dict(+why)


def fits(features):
    return all(
        value is None
        or isinstance(value, str) == (KINDS[name] in {"string", "timestamp"})
        for name, value in features.items()
    )


def as_table(rows):
    made = [
        row | spread_out(row["features"]) | {"features": json.dumps(row["features"])}
        for row in rows
    ]
    return pa.Table.from_pylist(made, PREDICTIONS)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_a_loop_over_the_rows_says(tmp_path, seed):
    draw = random.Random(seed)
    rows = [drawn(n, draw) for n in range(900)]
    settings = new_settings(tmp_path)
    table = predictions(settings)
    for first in range(0, 900, 150):
        table.insert(as_table(rows[first : first + 150]), "request_id")
    stored = {row["request_id"]: n for n, row in enumerate(table.read().to_pylist())}
    rows.sort(key=lambda row: stored[row["request_id"]])
    last, left_out = by_hand(rows)
    seen = window(table, "m", "1", {"1", "2"}, KINDS, NOW)
    assert seen.left_out == left_out
    found = seen.rows.set_index("entity")
    assert set(found.index) == set(last)
    for entity, row in last.items():
        for name, value in row["features"].items():
            same = found.loc[entity, name]
            assert same == value or (value is None and (same is None or np.isnan(same)))
        said = row["prediction"] if row["probability"] is None else row["probability"]
        assert found.loc[entity, "score"] == said
        assert found.loc[entity, "as_of"] == row["as_of"]
    kinds = [str(seen.rows[name].dtype) for name in KINDS]
    assert kinds == ["float64", "object", "float64", "float64", "object"]

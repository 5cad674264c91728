"""What counts in a window: entities once, however often they ask and whatever clock they go by."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from core.monitoring_spec import Monitoring
from core.storage import Table
from monitoring.checks.drift import measure
from monitoring.checks.result import PREDICTED
from monitoring.collect import PREDICTIONS, spread_out
from monitoring.window import window
from tests.conftest import new_settings

FEATURES = {"orders": "int64", "plan": "string"}
NOON = datetime(2026, 10, 25, 12, tzinfo=UTC)
"""Of the day on which Berlin's clocks go back at 01:00 UTC."""


def row(entity, received, orders=1, plan="a"):
    features = {"orders": orders, "plan": plan}
    return spread_out(features) | {
        "request_id": f"{entity} {received}", "model": "m", "version": "1", "role": "production",
        "received": received, "as_of": received, "entity": str(entity),
        "features": json.dumps(features), "features_from": "online",
        "probability": 0.5, "prediction": 1.0, "in_population": True,
    }  # fmt: skip


def seen(rows, until=NOON, classes=()):
    with TemporaryDirectory() as folder:
        table = Table(new_settings(Path(folder)), "predictions", PREDICTIONS)
        table.insert(pa.Table.from_pylist(rows, schema=PREDICTIONS), "request_id")
        return window(table, "m", "1", {"1"}, FEATURES, until, classes)


def test_one_customer_who_asks_a_thousand_times_is_one_entity_by_the_last_answer():
    minutes = [NOON - timedelta(minutes=n) for n in range(1000)]
    found = seen([row(4, at, orders=n) for n, at in enumerate(minutes)])
    assert found.rows["orders"].tolist() == [0]
    assert found.left_out == {"followed by a later one": 999}
    assert len(found.rows) < Monitoring().fewest


def test_of_many_classes_a_window_names_what_was_said():
    rows = [
        row(n, NOON) | {"prediction": n % 3, "probability": 0.4 + n / 100}
        for n in range(4)
    ]
    found = seen(rows, classes=("early", "on_time", "late")).rows.sort_values("entity")
    assert found[PREDICTED].tolist() == ["early", "on_time", "late", "early"]
    assert found["score"].tolist() == pytest.approx([0.4, 0.41, 0.42, 0.43])
    assert found.columns.tolist() == [*FEATURES, "score", "entity", "as_of", PREDICTED]
    assert PREDICTED not in seen(rows).rows


def test_an_empty_day_is_an_empty_window():
    found = seen(
        [row(4, NOON - timedelta(hours=25)), row(5, NOON + timedelta(seconds=1))]
    )
    assert (len(found.rows), found.left_out) == (0, {})
    assert {"orders", "plan", "score"} <= set(found.rows)


def test_a_window_is_24_hours_on_the_day_a_clock_is_set_back():
    berlin, first = ZoneInfo("Europe/Berlin"), NOON - timedelta(hours=24)
    hours = [first + timedelta(minutes=30 + 60 * n) for n in range(24)]
    rows = [row(n, at.astimezone(berlin)) for n, at in enumerate(hours)]
    assert len(seen(rows).rows) == len(seen(rows, NOON.astimezone(berlin)).rows) == 24
    # 02:30 there is twice: the later one is the later answer.
    twice = [datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=fold) for fold in (1, 0)]
    last = seen([row(4, at, orders=at.fold) for at in twice])
    assert last.rows["orders"].tolist() == [1]


def test_a_feature_that_is_all_null_and_one_category_only_are_compared(tmp_path):
    rows = [row(n, NOON - timedelta(minutes=1), orders=n % 7) for n in range(300)]
    nothing = [row(n, NOON - timedelta(minutes=1), orders=None) for n in range(300)]
    columns = ["orders", "plan", "score"]
    before, now = seen(rows).rows[columns], seen(nothing).rows[columns]
    found = {
        each.name: each.value for each in measure(Monitoring(), before, now, tmp_path)
    }
    assert [found[f"nulls_{name}"] for name in columns] == [1.0, 0.0, 0.0]
    assert found["psi_plan"] == 0.0

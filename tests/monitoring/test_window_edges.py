"""What counts in a window: entities once, however often they ask and whatever clock they go by."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa

from monitoring.collect import PREDICTIONS
from monitoring.drift import measure
from monitoring.verdict import FEWEST
from monitoring.window import window

FEATURES = {"orders": "int64", "plan": "string"}
NOON = datetime(2026, 10, 25, 12, tzinfo=UTC)
"""Of the day on which Berlin's clocks go back at 01:00 UTC."""


def row(entity, received, orders=1, plan="a"):
    return {
        "request_id": f"{entity} {received}", "model": "m", "version": "1", "role": "production",
        "received": received, "as_of": received, "entity": str(entity),
        "features": json.dumps({"orders": orders, "plan": plan}), "features_from": "online",
        "probability": 0.5, "prediction": 1.0, "in_population": True,
    }  # fmt: skip


def seen(rows, until=NOON):
    table = pa.Table.from_pylist(rows, schema=PREDICTIONS)
    return window(table, "m", "1", {"1"}, FEATURES, until)


def test_one_customer_who_asks_a_thousand_times_is_one_entity_by_the_last_answer():
    minutes = [NOON - timedelta(minutes=n) for n in range(1000)]
    found = seen([row(4, at, orders=n) for n, at in enumerate(minutes)])
    assert found.rows["orders"].tolist() == [0]
    assert found.left_out == {"followed by a later one": 999}
    assert len(found.rows) < FEWEST


def test_an_empty_day_is_an_empty_window():
    found = seen([row(4, NOON - timedelta(hours=25)), row(5, NOON + timedelta(seconds=1))])
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
    found = measure(seen(rows).rows[columns], seen(nothing).rows[columns], tmp_path, 0.25)
    assert found.null_share == {"orders": 1.0, "plan": 0.0, "score": 0.0}
    assert found.psi["plan"] == 0.0

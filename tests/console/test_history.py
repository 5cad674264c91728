"""What pictures are drawn of: points of monitoring runs, scales, what a row of the ledger did."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.spec import load_spec
from mlflow_server.ledger import LedgerRow
from mlflow_server.records import DecisionRow, Records
from mlflow_server.window_details import MeasuredMetric, WindowDetails
from monitoring.console.__main__ import next_runs
from monitoring.console.charts import Axis, Point, Span, axis, placed
from monitoring.console.history import change, read_history, traffic
from monitoring.serving_status import COUNTS, Counted
from tests.conftest import new_settings

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
NUMBERS = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_an_axis_has_room_for_every_value_and_a_few_round_ticks(
    values: list[float],
) -> None:
    scale = axis([*values, None, float("nan")], 100, 0)
    assert all(0 <= scale.at(value) <= 100 for value in values)
    assert 2 <= len(scale.ticks) <= 8
    assert all(
        scale.low <= tick <= scale.high * (1 + 1e-9) for tick in scale.ticks if tick > 0
    )


def test_an_axis_without_values_can_be_drawn() -> None:
    assert axis([], 0, 100).at(0.0) == 0
    assert axis([0.5, 0.5], 0, 100).at(0.5) == 50


def test_a_span_names_midnights_and_keeps_what_came_before_at_its_edge() -> None:
    span = Span(NOW - 30 * 24 * HOUR, NOW)
    assert [f"{day:%d}" for day in span.days] == ["26", "31", "05", "10", "15", "20"]
    assert (span.at(NOW), span.at(span.since), span.at(span.since - HOUR)) == (99, 1, 1)


def test_a_point_opens_the_newest_report_since_the_one_before() -> None:
    points = [Point(NOW - n * HOUR, 0.1 * n, "ok") for n in (6, 4, 2)]
    reports = {NOW - n * HOUR: f"report {n}" for n in (5, 4.5, 2)}
    found = placed(points, Span(NOW - 8 * HOUR, NOW), Axis(0, 1, 100, 0), reports)
    assert [report for *_, report in found] == [None, "report 4.5", "report 2"]


def test_traffic_is_what_came_between_two_readings_and_leaves_out_what_is_unknown() -> (
    None
):
    earlier = {"production 2": {"a": Counted(1, 100, ((0.1, 50), (0.2, 100)), 99)}}
    now = {"production 2": {"a": Counted(3, 160, ((0.1, 110), (0.2, 160)), 155)}}
    found = traffic("production 2", now, earlier, timedelta(minutes=30))
    assert found["requests a minute"] == 2
    assert found["failed, %"] == pytest.approx(100 * 2 / 58)
    assert found["p99 in ms"] == pytest.approx(99, abs=1)
    assert traffic("production 3", now, earlier, HOUR) == {"requests a minute": 0}


def test_figures_are_the_worst_first_with_intervals_where_these_are_known(
    tmp_path: Path,
) -> None:
    counted = [Counted(0, 60 * n, ((0.1, 60 * n),), 60 * n) for n in range(3)]
    texts = [
        COUNTS.dump_json({"production 1": {"a": each}}).decode() for each in counted
    ]
    figures = {"psi_low": 0.1, "psi_high": 0.3, "online_auc": 0.7, "mean_score": 0.4}
    details = WindowDetails(
        performance={"online": {"auc": MeasuredMetric(0.7, 0.6, 0.8)}}
    )
    with closing(Records(new_settings(tmp_path))) as records:
        for n, text in enumerate([*texts, None]):
            row = DecisionRow("churn", "1", NOW + n * HOUR, "ok", "nothing", "ok", "", "", "{}",
                              figures | {"psi_unknown": float("nan")}, text)  # fmt: skip
            records.keep(row)
        records.keep_details("churn", NOW + HOUR, details)
        found = read_history(records, "churn", NOW, 1)
        assert read_history(records, "other", NOW, 1).newest is None
    assert [name for name in found.figures if name.startswith("psi_")] == [
        "psi_high",
        "psi_low",
    ]
    auc = found.figures["online_auc"]
    assert [(point.low, point.high) for point in auc] == [
        (None, None),
        (0.6, 0.8),
    ] + 2 * [(None, None)]
    assert [point.value for point in found.traffic["requests a minute"]] == [1, 1]
    assert (found.newest, found.at) == (None, NOW + 3 * HOUR)


ROW = LedgerRow(
    "churn", 1, "production", 100, None, "1", "ann", "first", None, NOW, NOW
)
ROWS = [
    ROW,
    replace(ROW, sequence=2, from_version="1", to_version="2"),
    replace(ROW, sequence=3, from_version="2", to_version="1", who="monitor"),
    replace(ROW, sequence=4, from_version="1", to_version="3", who="out of band"),
    replace(ROW, sequence=5, from_version="3", to_version="4", who="mlflow-ui:ann"),
    replace(ROW, sequence=6, role="challenger", percent=5, to_version="5"),
    replace(
        ROW, sequence=7, role="challenger", percent=0, from_version="5", to_version=None
    ),
    replace(ROW, sequence=8, from_version="4", to_version="6", applied_at=None),
    replace(ROW, sequence=9, from_version="4", to_version="6"),
]


def test_changes_are_told_apart() -> None:
    assert [change(ROWS, row) for row in ROWS] == [
        "promotion", "promotion", "rollback", "out of band", "by hand in MLflow", "rollout",
        "ended", "not applied", "promotion",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "training"),
    [("@weekly", "2026-11-22 00:00"), ("@quarterly", "2027-01-01 00:00"),
     ("15 3 * * *", "2026-11-21 03:15")],
)  # fmt: skip
def test_the_next_runs_are_those_of_airflow(schedule: str, training: str) -> None:
    spec = load_spec("customer_churn_model").model_copy(update={"schedule": schedule})
    found = next_runs(spec, NOW)
    assert {name: f"{at:%Y-%m-%d %H:%M}" for name, at in found.items()} == {
        "monitoring": "2026-11-20 13:00", "training": training,
    }  # fmt: skip

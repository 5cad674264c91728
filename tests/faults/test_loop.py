"""Twenty monitoring runs on one real stack see the same drift.

A version of 180 days ago meets the customers of today. Airflow starts one monitoring run at a time,
so eight of the twenty are runs of Airflow, and twelve are `gyre monitor` in two shells at once.
A paused DAG holds its run back: the training ends after all of them.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.ingest import raw_table
from mlflow_server.alerts import Alerts
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.decision_log import newest_decisions
from stack.airflow_api import AirflowApi
from stack.processes import members
from tests.conftest import new_settings, wait_until
from tests.loop.test_stack import MODEL, Stack

SPEC = load_spec(MODEL)
MONITOR, TRAIN = f"monitor_{MODEL}", f"train_{MODEL}"
AGE = timedelta(days=180)
IN_AIRFLOW, IN_SHELLS, SHELLS_AT_ONCE = 8, 12, 2
CHUNK = 10_000
CAUSE = "drift of version 1"


@pytest.fixture
def stack(tmp_path):
    stack = Stack(new_settings(tmp_path / "home", demo_start=None))
    try:
        stack.run("gyre", "up", "--as-of", (datetime.now(UTC) - AGE).isoformat())
        yield stack
    finally:
        stack.run("gyre", "down")
        assert members(stack.settings.home) == [], "processes were left running"


def predict_all(stack: Stack) -> None:
    """Ask for a prediction of each customer."""
    raw = raw_table(stack.settings, load_dataset(SPEC.dataset)).read()
    customers = sorted(raw["customer_id"].unique().to_pylist())
    url = f"{stack.settings.serving_address}/predict/batch"
    for start in range(0, len(customers), CHUNK):
        rows = [{"customer_id": key} for key in customers[start : start + CHUNK]]
        httpx.post(url, json=rows, timeout=60).raise_for_status()


def pause(airflow: AirflowApi, dag: str, *, paused: bool = True) -> None:
    """Press the switch beside the DAG's name."""
    airflow._checked(airflow._send("PATCH", f"/dags/{dag}", json={"is_paused": paused}))


def training_runs(airflow: AirflowApi, *states: str) -> list[dict[str, Any]]:
    """Trainings that a decision has started, in one of `states` (any, if none is given)."""
    rows = airflow.last_runs(TRAIN, 50, run_type="asset_triggered")
    return [row for row in rows if not states or row["state"] in states]


def other_runs(airflow: AirflowApi) -> set[datetime]:
    """When the monitoring runs of the schedule and of promotions started."""
    runs = airflow.last_runs(MONITOR, 50, run_type="scheduled")
    runs += airflow.last_runs(MONITOR, 50, run_type="asset_triggered")
    return {
        datetime.fromisoformat(run["start_date"]) for run in runs if run["start_date"]
    }


@pytest.mark.nightly
def test_twenty_monitoring_runs_that_see_the_same_drift_are_one_retraining_and_one_alert(
    stack,
):
    """18."""
    predict_all(stack)
    began = datetime.now(UTC)
    with (
        AirflowApi(stack.settings) as airflow,
        ThreadPoolExecutor(SHELLS_AT_ONCE) as shells,
    ):
        runs = [airflow.trigger(MONITOR, {}) for _ in range(IN_AIRFLOW)]
        commands = [
            shells.submit(stack.run, "gyre", "monitor", MODEL) for _ in range(IN_SHELLS)
        ]
        wait_until("a training", lambda: bool(training_runs(airflow, "running")), 240)
        pause(airflow, TRAIN)
        for run in runs:
            airflow.follow(MONITOR, run, lambda _: None, 300)
        for command in commands:
            command.result(300)
        assert len(stack.ledger()) == 1, "a run of the twenty saw the new version"
        pause(airflow, TRAIN, paused=False)
        wait_until(
            "the end of training",
            lambda: not training_runs(airflow, "queued", "running"),
            240,
        )
        trainings = training_runs(airflow)
        others = other_runs(airflow)
        task_states = [
            {
                row["task_id"]: row["state"]
                for row in airflow.tasks(TRAIN, run["dag_run_id"])
            }
            for run in trainings
        ]

    decisions = [
        row
        for row in newest_decisions(stack.settings, MODEL)
        if row.as_of > began and row.version == "1" and row.as_of not in others
    ]
    assert [(row.verdict, row.cause) for row in decisions] == [("bad", CAUSE)] * 20
    assert all("lifetime_orders: PSI" in row.reason for row in decisions)

    assert {run["state"] for run in trainings} == {"success"}
    worked = [states for states in task_states if states["dataset"] == "success"]
    assert len(worked) == 1, f"one cause, one training: {task_states}"
    tracked = [
        run.status
        for run in Tracking(stack.settings).runs(SPEC.experiment)
        if run.tags.get("cause", "").startswith(CAUSE)
    ]
    assert tracked == ["FINISHED"]
    versions = Registry(stack.settings).versions(MODEL)
    assert [version.version for version in versions] == ["1", "2"]
    first, second = stack.ledger()
    assert (first["to"], second["from"], second["to"]) == ("1", "1", "2")
    assert second["why"].startswith(CAUSE)

    with closing(Alerts(stack.settings)) as alerts:
        (alert,) = alerts.rows(MODEL)
    lines = (stack.settings.home / "logs" / "alerts.log").read_text().splitlines()
    (delivered,) = map(json.loads, lines)
    assert alert["cause"] == delivered["cause"] == CAUSE
    # A run that saw less than two bad windows counts only after the alert of another run.
    certain = [row for row in decisions if row.rule in {"drift", "cooldown"}]
    assert len(certain) >= 20 - 1 - SHELLS_AT_ONCE
    assert len(certain) <= alert["count"] <= 20

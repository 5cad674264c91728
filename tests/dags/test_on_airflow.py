"""The shipped DAGs on a real Airflow of their own, without MLflow: training fails at once."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli.programs import airflow_programs
from mlflow_server.tracking import Tracking
from stack.airflow_api import AirflowApi, error_of
from stack.ending import end_stack, members
from stack.environment import airflow_environment, load_secrets, make_secrets, process_environment
from stack.errors import StackError
from stack.processes import render, start, wait_ready
from stack.settings import load_settings
from stack.spec import load_spec
from tests.conftest import mlflow_server, wait_until

MODEL = "customer_churn_model"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    ports = {name: free_port() for name in ("airflow_port", "mlflow_port", "redis_port")}
    settings = load_settings(home=tmp_path_factory.mktemp("home"), **ports)
    for name in ("run", "logs"):
        (settings.home / name).mkdir()
    make_secrets(settings)
    airflow, config = str(Path(sys.executable).parent / "airflow"), airflow_environment(settings)
    env = process_environment(settings) | config
    subprocess.run([airflow, "db", "migrate"], env=env, capture_output=True, check=True)
    programs = airflow_programs(settings)
    start(settings, render(settings, programs))
    try:
        wait_ready(settings, programs, print)
        yield settings
    finally:
        end_stack(settings)
        assert members(settings.home) == []


@pytest.fixture
def airflow(settings):
    with AirflowApi(settings) as api:
        yield api


def wait_for_run(
    airflow: AirflowApi, wanted: str, count: int = 1, dag: str = "train"
) -> list[dict[str, object]]:
    until = time.monotonic() + 40
    while True:
        rows = airflow.last_runs(f"{dag}_{MODEL}", 50)
        found = [row for row in rows if (row["partition_key"] or "").startswith(wanted)]
        if len(found) >= count:
            return found
        assert time.monotonic() < until, rows
        time.sleep(0.5)


def assert_one_each(runs: list[dict[str, object]]) -> None:
    """One run for each moment: at a full hour Airflow's own schedule has started one as well."""
    keys = [run["partition_key"] for run in runs]
    assert len(keys) == len(set(keys)), keys


def test_a_failed_task_is_named_with_its_error_and_a_note_is_shown(airflow):
    run = airflow.trigger(f"train_{MODEL}", {"as_of": "2026-05-01T00:00:00", "reason": "try"})
    with pytest.raises(StackError, match=r"task validate: AirflowFailException: parameter as_of"):
        airflow.follow(f"train_{MODEL}", run, lambda _: None, limit=120)
    airflow.note(f"train_{MODEL}", run, "n" * 2000)
    assert airflow.run(f"train_{MODEL}", run)["note"] == "n" * 1000


def test_a_training_that_failed_for_good_is_failed_in_mlflow_too(airflow, settings):
    experiment, run = load_spec(MODEL).experiment, "dies"
    with mlflow_server(settings):
        tracking = Tracking(settings)
        run_id = tracking.start_or_find_run(experiment, f"train_{MODEL}/{run}", run, {})
        body = {"dag_run_id": run, "logical_date": None, "conf": {}}
        airflow._checked(airflow._send("POST", f"/dags/train_{MODEL}/dagRuns", json=body))
        with pytest.raises(StackError, match="task validate: "):
            airflow.follow(f"train_{MODEL}", run, lambda _: None, limit=120)
        wait_until("failed", lambda: tracking.run(run_id).status == "FAILED", 30)


def test_drift_reported_by_many_at_once_is_lost_for_no_cause_and_no_write_fails(airflow):
    extra = {"as_of": "not a time", "reason": "drift of spend"}

    def emit(number: int) -> None:
        airflow.emit(f"drift/{MODEL}", f"cause {number % 2}", extra)

    emit(0)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(emit, range(20)))) == 20
    # Events of one cause that come once its run exists start another: open_run ends those.
    keys = [row["partition_key"] for row in wait_for_run(airflow, "cause ", 2)]
    assert set(keys) == {"cause 0", "cause 1"}


def test_refusals_and_silence_are_one_clear_line(airflow, settings):
    with pytest.raises(StackError, match=r"Airflow refused GET .*nothing.*404"):
        airflow.run("nothing", "x")
    airflow.pool("one", 1)
    airflow.pool("one", 1)
    dead = settings.model_copy(update={"airflow_port": free_port()})
    with AirflowApi(dead) as nobody, pytest.raises(StackError, match="does not answer"):
        nobody.run("x", "y")


def test_secrets_are_their_owners_alone_and_made_once(settings):
    folder = settings.home / "airflow"
    assert {
        (folder / name).stat().st_mode & 0o77 for name in ("secrets.json", "passwords.json")
    } == {0}
    before = load_secrets(settings)
    make_secrets(settings)
    assert load_secrets(settings) == before


def test_the_last_error_of_a_log_is_told():
    detail = {"error_detail": [{"exc_type": "A", "exc_value": "b"}], "level": "error"}
    assert error_of([{"event": "x"}, detail, {"event": "after"}]) == "A: b"
    assert error_of([{"event": "bad", "level": "error"}]) == "bad"
    assert error_of([]) == "its log has no error"


def test_the_schedule_starts_one_training_run_about_its_own_moment(airflow):
    run = airflow.trigger(f"schedule_{MODEL}", {})
    told: list[str] = []
    assert airflow.follow(f"schedule_{MODEL}", run, told.append, limit=60)["state"] == "success"
    assert told[0].strip().startswith("emit: success")
    assert_one_each(wait_for_run(airflow, "schedule "))


def test_the_hour_and_a_promotion_each_start_a_look_of_their_own(airflow):
    airflow.follow(f"hourly_{MODEL}", airflow.trigger(f"hourly_{MODEL}", {}), lambda _: None)
    airflow.emit(f"promoted/{MODEL}", "version 7", {"version": "7"})
    for wanted in ("schedule ", "version 7"):
        assert_one_each(wait_for_run(airflow, wanted, dag="monitor"))
    with pytest.raises(StackError, match="Airflow knows no asset promoted/nothing"):
        airflow.emit("promoted/nothing", "x", {})

"""The shipped DAGs on a real Airflow of their own, without MLflow: training fails at once.

What the stack of test_stack.py can show is there.

Three models stand beside the shipped one, equal to it but that a person approves the versions of
two, and that those of the third come into production step by step; and a spec that is wrong.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from core.errors import StackError
from core.settings import PROJECT, load_settings
from core.spec import load_spec
from mlflow_server.connection import client
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.records import Records
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from stack.airflow_api import AirflowApi
from stack.environment import airflow_environment, make_secrets, process_environment
from stack.processes import end_stack, members, render, start, wait_ready
from stack.programs import airflow_programs
from tests.conftest import AS_OF, mlflow_server, wait_until
from tests.loop.test_stack import wait_for_run
from tests.mlflow_server.conftest import stages
from training.artifacts import EVALUATION
from training.evaluate import compare
from training.gate import EVALUATIONS
from training.metrics import Scored

MODEL = "customer_churn_model"
APPROVED, HASTY, CANARY = "approved_model", "hasty_model", "canary_model"
WAIT_HOURS = {APPROVED: 1, HASTY: 0.0005}
pytestmark = pytest.mark.nightly


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def with_more(folder: Path) -> Path:
    """A copy of the project, with the three models more."""
    for room in (
        "dags",
        "feature_repo",
        "mlflow_server",
        "models",
        "monitoring",
        "core",
        "stack",
        "training",
    ):
        shutil.copytree(
            PROJECT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    shipped = (folder / "models" / f"{MODEL}.toml").read_text()
    more = {
        name: f"[promotion]\napproval = true\nwait_hours = {hours}"
        for name, hours in WAIT_HOURS.items()
    }
    for name, lines in (more | {CANARY: '[rollout]\npolicy = "canary"'}).items():
        spec = shipped.replace(f'name = "{MODEL}"', f'name = "{name}"', 1)
        (folder / "models" / f"{name}.toml").write_text(f"{spec}\n{lines}\n")
    torn = shipped.replace(f'name = "{MODEL}"', 'name = "torn"', 1)
    (folder / "models" / "torn.toml").write_text(
        torn.replace("@weekly", "@fortnightly")
    )
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    ports = {
        name: free_port()
        for name in ("airflow_port", "mlflow_port", "redis_port", "serving_port")
    }
    settings = load_settings(home=tmp_path_factory.mktemp("home"), **ports)
    for name in ("run", "logs"):
        (settings.home / name).mkdir()
    make_secrets(settings)
    airflow, config = (
        str(Path(sys.executable).parent / "airflow"),
        airflow_environment(settings),
    )
    env = process_environment(settings) | config
    subprocess.run([airflow, "db", "migrate"], env=env, capture_output=True, check=True)
    project = with_more(tmp_path_factory.mktemp("project"))
    (settings.home / "project").symlink_to(project)
    theirs = {
        "PYTHONPATH": str(project),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
    }
    programs = [
        replace(program, environment={**program.environment, **theirs})
        for program in airflow_programs(settings)
    ]
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


def registered(settings, model):
    """The run of version 2, which was measured beside version 1, the one in production."""
    api, tracking = client(settings), Tracking(settings)
    tags = {"as_of": AS_OF.isoformat(), "reason": "drift of spend"}
    run_id = tracking.start_or_find_run(model, model, model, tags)
    y = np.arange(200) % 2
    better, worse = (Scored(np.where(y, 0.5 + by, 0.5 - by), 0.5) for by in (0.3, 0.2))
    found = compare(load_spec(MODEL), y, better, worse, "1")
    tracking.log_json(run_id, EVALUATIONS.dump_python(found, mode="json"), EVALUATION)
    api.create_registered_model(model)
    for _ in range(2):
        api.create_model_version(model, f"runs:/{run_id}/model", run_id)
    Registry(settings).set_stage(model, "2", "Staging")
    with closing(Ledger(settings)) as ledger:
        promote(Registry(settings), ledger, model, "1", who="ann", why="first")
    return run_id


def request(airflow, method, path, **more):
    return airflow._checked(airflow._send(method, path, **more))


def started_at_approval(airflow, model, run_id):
    """A run of `train_<MODEL>` as if every task up to `register` had done its work."""
    dag, run = f"train_{model}", "asks"
    body = {
        "dag_run_id": run,
        "logical_date": None,
        "conf": {"reason": "drift of spend"},
    }
    tasks = f"/dags/{dag}/dagRuns/{run}/taskInstances"
    for name in (dag, f"monitor_{model}"):
        parsed = partial(
            airflow._send, "PATCH", f"/dags/{name}", json={"is_paused": True}
        )
        wait_until(name, lambda asked=parsed: asked().is_success)
    request(airflow, "POST", f"/dags/{dag}/dagRuns", json=body)
    done = {"new_state": "success", "include_upstream": True}
    request(airflow, "PATCH", f"{tasks}/register", json=done)
    for task, value in (("validate", run_id), ("register", "2")):
        result = {"key": "return_value", "value": value}
        request(airflow, "POST", f"{tasks}/{task}/xcomEntries", json=result)
    request(airflow, "PATCH", f"/dags/{dag}", json={"is_paused": False})
    return dag, run


def answer(airflow, dag, run, chosen, comment):
    """Answer as a person does, once asked; return what was asked."""
    place = f"/dags/{dag}/dagRuns/{run}/taskInstances/approval"

    def asked():
        return request(airflow, "GET", place)["state"] == "awaiting_input"

    wait_until("the question", asked)
    with pytest.raises(
        StackError, match=f"{dag} waits for your answer: http://127.*/approval/req"
    ):
        airflow.follow(dag, run, lambda _: None)
    # The scheduler has yet to hear that the asking process has ended: told of it after an answer
    # of the same second, it takes the task for killed, and asks again.
    time.sleep(3)
    found = request(airflow, "GET", f"{place}/-1/hitlDetails")
    body = {"chosen_options": [chosen], "params_input": {"comment": comment}}
    request(airflow, "PATCH", f"{place}/-1/hitlDetails", json=body)
    wait_until(
        "the answer", lambda: not asked()
    )  # Airflow commits after it has answered
    return found


def ended(airflow, dag, run):
    note = airflow.follow(dag, run, lambda _: None)["note"]
    return note, {row["task_id"]: row["state"] for row in airflow.tasks(dag, run)}


def test_a_version_waits_for_a_person_who_may_say_no_or_yes_or_nothing(
    airflow, settings
):
    with mlflow_server(settings):
        tracking, registry = Tracking(settings), Registry(settings)
        runs = {model: registered(settings, model) for model in (HASTY, APPROVED)}
        dags = {
            model: started_at_approval(airflow, model, run)
            for model, run in runs.items()
        }
        dag, run = dags[APPROVED]
        found = answer(airflow, dag, run, "Reject", "too few rows")
        asked = (
            "Put version 2 of approved_model into production, in place of version 1?"
        )
        assert found["subject"] == asked
        card = f"runs/{runs[APPROVED]}/artifacts/model_card.html)"
        assert f"[Model card]({settings.mlflow_address}/#/experiments/" in found["body"]
        assert card in found["body"]
        said = "not approved: version 2: rejected by admin: too few rows"
        note, states = ended(airflow, dag, run)
        assert (note, states["approval"], states["promote"]) == (
            said,
            "success",
            "skipped",
        )
        mlflow_run = tracking.run(runs[APPROVED])
        assert (mlflow_run.status, mlflow_run.tags["outcome"]) == ("FINISHED", said)
        assert stages(settings, APPROVED)["2"] == "Staging"
        assert registry.production(APPROVED) == "1"

        again = {
            "dag_run_id": run,
            "task_ids": ["approval"],
            "include_downstream": True,
        }
        again |= {"dry_run": False, "only_failed": False}
        request(airflow, "POST", f"/dags/{dag}/clearTaskInstances", json=again)
        answer(airflow, dag, run, "Approve", "enough after all")
        note, states = ended(airflow, dag, run)
        assert (note, states["promote"]) == (
            "version 2 is in production, in place of 1",
            "success",
        )
        with closing(Ledger(settings)) as ledger:
            row = ledger.rows(APPROVED)[-1]
        assert (row.to_version, row.who) == ("2", "airflow:admin")
        assert row.applied_at
        assert row.why == "drift of spend; enough after all"
        assert stages(settings, APPROVED)["2"] == "Production"
        assert tracking.run(runs[APPROVED]).tags["outcome"] == note

        note, states = ended(airflow, *dags[HASTY])
        assert note == "not approved: version 2: nobody answered within 0.0005 h"
        assert (states["approval"], states["promote"]) == ("success", "skipped")
        assert stages(settings, HASTY)["2"] == "Staging"
        assert registry.production(HASTY) == "1"


def test_a_rollout_looks_when_told_and_holds_with_its_reason_as_the_note(
    airflow, settings
):
    dag, extra = f"rollout_{CANARY}", {"as_of": "2026-05-01T00:00:00Z"}
    with mlflow_server(settings), closing(Ledger(settings)) as ledger:
        registry, api = Registry(settings), client(settings)
        api.create_registered_model(CANARY)
        run = api.create_run("0").info
        for _ in range(2):
            api.create_model_version(CANARY, f"{run.artifact_uri}/model", run.run_id)
        promote(registry, ledger, CANARY, "1", who="ann", why="first")
        promote(registry, ledger, CANARY, "2", who="ann", why="next", role="shadow")
        airflow.emit(f"rollout/{CANARY}", "version 2", extra)
        (told,) = wait_for_run(airflow, dag, "version 2")  # beside those of the clock
        note, states = ended(airflow, dag, told["dag_run_id"])
    said = f"{CANARY} version 2 as shadow holds: serving at {settings.serving_address} does not"
    assert note.startswith(said)
    assert states == {"look": "success", "promoted": "skipped"}


def alerted(settings, subject, task):
    """The alert that `task` failed, None before it."""
    with closing(Records(settings)) as records:
        rows = [
            row
            for row in records.alerts(subject)
            if row["cause"].startswith(f"{task} failed")
        ]
    assert len(rows) <= 1
    return rows[0] if rows else None


def delivered(settings, task):
    lines = (settings.home / "logs" / "alerts.log").read_text().splitlines()
    return [
        line
        for line in map(json.loads, lines)
        if line["cause"].startswith(f"{task} failed")
    ]


def test_a_task_that_failed_for_good_alerts_once(airflow, settings):
    dag, ticks = f"train_{MODEL}", f"schedule_{MODEL}"
    emit = f"{ticks}.emit"
    for name in (dag, ticks):
        wait_until(name, lambda n=name: airflow._send("GET", f"/dags/{n}").is_success)
    for count in (1, 2):
        run = airflow.trigger(ticks, {"as_of": "2026-05-01T00:00:00"})
        with pytest.raises(StackError, match="AirflowFailException: parameter as_of"):
            airflow.follow(ticks, run, lambda _: None)
        # Airflow tells that a task has failed before it calls back.
        wait_until(
            "counted",
            lambda n=count: (
                (alerted(settings, MODEL, emit) or {"count": 0})["count"] == n
            ),
        )
    (told,) = delivered(settings, emit)
    assert "AirflowFailException: parameter as_of" in told["message"]


def test_a_broken_spec_is_alerted_of_by_the_ingest_until_it_is_repaired(
    airflow, settings
):
    task, torn = "ingest.read_specs", settings.home / "project" / "models" / "torn.toml"
    airflow.pool("tables", 1)
    with pytest.raises(
        StackError, match=r"task read_specs: .*torn\.toml: schedule: .*@fortn"
    ):
        airflow.follow("ingest", airflow.trigger("ingest", {}), lambda _: None)
    (told,) = delivered(settings, task)
    assert (told["model"], "torn.toml: schedule: " in told["message"]) == (
        "ingest",
        True,
    )
    not_ingested = "ingest.ingest_orders"  # there is no Redis
    wait_until("of the dataset", lambda: alerted(settings, "orders", not_ingested))
    torn.unlink()
    before = alerted(settings, "ingest", task)[
        "count"
    ]  # 2 where an hour began meanwhile
    with pytest.raises(StackError, match="failed: task ingest_orders: "):
        airflow.follow("ingest", airflow.trigger("ingest", {}), lambda _: None)
    assert alerted(settings, "ingest", task)["count"] == before
    assert len(delivered(settings, not_ingested)) == 1


def test_drift_reported_by_many_at_once_is_lost_for_no_cause_and_no_write_fails(
    airflow,
):
    extra = {"as_of": "not a time", "reason": "drift of spend"}

    def emit(number: int) -> None:
        airflow.emit(f"drift/{MODEL}", f"cause {number % 2}", extra)

    emit(0)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(emit, range(20)))) == 20
    # Events of one cause that come once its run exists start another: open_run ends those.
    keys = [
        row["partition_key"]
        for row in wait_for_run(airflow, f"train_{MODEL}", "cause ", 2)
    ]
    assert set(keys) == {"cause 0", "cause 1"}

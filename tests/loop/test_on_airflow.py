"""The shipped DAGs on a real Airflow, beside MLflow and a fifth of the demo's customers.

Every DAG is paused until a test wants it. There are four more models than the shipped one: a
person approves the versions of three, and those of the third come into production step by step.
"""

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import numpy as np
import pyarrow as pa
import pytest

from cli.up import _first_training
from core.errors import StackError
from core.spec import load_spec
from core.spec.monitoring import Promotion
from feature_engine.ingest.source import pull
from feature_repo.datasets import load_dataset
from mlflow_server.alerts import WAITS, Alerts, is_open
from mlflow_server.api.comparison import EVALUATION
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import promote
from monitoring.decisions.store import DecisionRow, store_decision
from monitoring.trials.rollout import STEP
from stack.airflow_api import AirflowApi
from stack.airflow_config import write_airflow_config
from stack.environment import make_secrets, process_environment
from stack.programs import PROGRAMS
from stack.supervisor import end_stack, members, start, start_supervisor, wait_ready
from tests.conftest import (
    AS_OF,
    BIN,
    answers,
    feast_apply,
    mlflow_server,
    new_settings,
    running,
    wait_until,
)
from tests.faults.conftest import alerts
from tests.mlflow_server.conftest import client, stages
from tests.support.tools.clone import Copy
from tests.support.training.chains import store
from training.evaluation.metrics import Scored
from training.evaluation.results import EVALUATIONS
from training.stages.evaluate import measure_models

MODEL = "customer_churn_model"
TRAIN = f"train_{MODEL}"
ORDERS = load_dataset("orders")
APPROVED = "approved_model"
PATIENT = "patient_model"
HASTY = "hasty_model"
CANARY = "canary_model"
MORE_LINES = {
    APPROVED: "[promotion]\napproval = true\nwait_hours = 1",
    PATIENT: "[promotion]\napproval = true",
    HASTY: "[promotion]\napproval = true\nwait_hours = 0.0005",
    CANARY: '[rollout]\npolicy = "canary"',
}
TEAM_DAG = """
from airflow.sdk import dag, task

@task
def divide(**context):
    return 1 / context["params"]["by"]

@dag(params={"by": 1})
def team():
    divide()

team()
"""
"""A DAG that knows nothing of Gyre."""
pytestmark = pytest.mark.nightly


def add_to_project(folder):
    """Add more models, a wrong spec and a DAG of a team."""
    (folder / "dags" / "team.py").write_text(TEAM_DAG)
    models = folder / "models"
    shipped = (models / f"{MODEL}.toml").read_text()
    for name, lines in MORE_LINES.items():
        spec = shipped.replace(f'name = "{MODEL}"', f'name = "{name}"', 1)
        (models / f"{name}.toml").write_text(f"{spec}\n{lines}\n")
    torn = shipped.replace(f'name = "{MODEL}"', 'name = "torn"', 1)
    (models / "torn.toml").write_text(torn.replace("@weekly", "@fortnightly"))


def add_orders(settings):
    """Land what the demo has delivered by now of a fifth of the customers."""
    feast_apply(settings)
    rows = pull(settings, ORDERS, datetime.now(UTC)).read_all()
    customers = rows["customer_id"].to_numpy()
    store(settings, ORDERS, rows.filter(pa.array(customers % 5 == 0)))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    settings = new_settings(
        tmp_path_factory.mktemp("home"),
        demo_start=datetime.now(UTC).date(),
        airflow_users="ann:user,bob:viewer",
    )
    for name in ("run", "logs"):
        (settings.home / name).mkdir()
    make_secrets(settings)
    write_airflow_config(settings)
    variables = process_environment(settings)
    migrate = [BIN / "airflow", "db", "migrate"]
    subprocess.run(migrate, env=variables, capture_output=True, check=True)
    folder = tmp_path_factory.mktemp("project")
    Copy(folder, settings)
    add_to_project(folder)
    variables |= {
        "PYTHONPATH": str(folder),
        "GYRE_PROJECT": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
    }
    programs = [program for program in PROGRAMS if program.part == "airflow"]
    with mlflow_server(settings):
        start_supervisor(settings, programs, variables)
        start(settings, programs)
        try:
            add_orders(settings)
            wait_ready(settings, programs, print)
            yield settings
        finally:
            end_stack(settings)
    assert members(settings.home) == []


@pytest.fixture
def airflow(settings):
    with AirflowApi(settings) as api:
        yield api


def request(airflow, method, path, **body):
    return airflow._checked(airflow._send(method, path, **body))


def unpause(airflow, dag):
    """Press the switch beside the DAG's name, once it is parsed."""
    body = {"is_paused": False}
    switch = partial(airflow._send, "PATCH", f"/dags/{dag}", json=body)
    wait_until(dag, lambda: switch().is_success)


def task_state(airflow, dag, run, task):
    path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}"
    return request(airflow, "GET", path)["state"]


def end_run(airflow, run):
    body = {"state": "failed"}
    request(airflow, "PATCH", f"/dags/{TRAIN}/dagRuns/{run}", json=body)


def wait_for_validation(airflow, run):
    state = partial(task_state, airflow, TRAIN, run, "validate")
    wait_until("validate", lambda: state() in {"success", "failed"})
    assert state() == "success"


def started_by_events(airflow, dag):
    """Return the one run that events started, once there is one."""
    runs = partial(airflow.last_runs, dag, 50, run_type="asset_triggered")
    wait_until(f"a run of {dag}", runs)
    (run,) = runs()
    return run["dag_run_id"]


def decide_to_retrain(settings, name):
    """Store what the monitor stores when it decides; return when that was."""
    now = datetime.now(UTC)
    reason = f"PSI of {name}"
    row = DecisionRow(
        MODEL, "1", now, "bad", "retrain", "drift", reason, f"drift of {name}",
        f"bad: {reason}", "{}", 1000, created=Registry(settings).assignment(MODEL).created,
    )  # fmt: skip
    store_decision(settings, row)
    return now


def add_versions(settings, model, run_id=None):
    """Register two versions without files, by default of a new run; the first is in production."""
    api = client(settings)
    api.create_registered_model(model)
    run = api.get_run(run_id) if run_id else api.create_run("0")
    source = f"{run.info.artifact_uri}/model"
    for _ in range(2):
        api.create_model_version(model, source, run.info.run_id)
    with closing(Ledger(settings)) as ledger:
        promote(Registry(settings), ledger, model, "1", who="ann", why="first")


def test_drifts_during_a_training_start_one_more_training_that_answers_them_all(
    airflow, settings
):
    add_versions(settings, MODEL)
    unpause(airflow, TRAIN)
    month_ago = (datetime.now(UTC) - timedelta(days=30)).isoformat()
    first = airflow.trigger(TRAIN, {"as_of": month_ago, "reason": "the first"})
    wait_for_validation(airflow, first)
    decide_to_retrain(settings, "spend")
    newest = decide_to_retrain(settings, "orders")
    with ThreadPoolExecutor(8) as pool:  # no write fails, however many come at once
        list(pool.map(lambda _: airflow.emit(f"drift/{MODEL}"), range(20)))
    assert airflow.run(TRAIN, first)["state"] == "running"
    end_run(airflow, first)

    second = started_by_events(airflow, TRAIN)
    wait_for_validation(airflow, second)
    end_run(airflow, second)
    runs = Tracking(settings).runs(load_spec(MODEL).experiment)
    (tags,) = (run.tags for run in runs if run.key == f"{TRAIN}/{second}")
    reasons = "drift of spend: PSI of spend; drift of orders: PSI of orders"
    cause = f"drift of orders, decided {newest:%Y-%m-%d %H:%M:%S}"
    assert (tags["reason"], tags["cause"]) == (reasons, cause)
    assert datetime.fromisoformat(tags["as_of"]) == newest
    assert tags["who"] == "airflow:asset_triggered"
    assert started_by_events(airflow, TRAIN) == second


def test_a_user_has_the_role_of_the_settings_and_no_header_gives_a_role(
    airflow, settings
):
    passwords = json.loads((settings.home / "airflow" / "passwords.json").read_text())
    for name, status in (("ann", 200), ("bob", 403)):
        login = {"username": name, "password": passwords[name]}
        token = airflow._http.post("/auth/token", json=login).json()["access_token"]
        response = airflow._http.post(
            f"/api/v2/dags/{TRAIN}/dagRuns",
            json={"logical_date": None, "conf": {"as_of": "no time"}},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert response.status_code == status
    headers = {"X-Forwarded-User": "ann", "Authorization": ""}
    assert airflow._http.get("/api/v2/dags", headers=headers).status_code == 401


def test_the_console_counts_runs_that_ended_by_their_state(airflow, settings):
    dag = "maintain"
    wait_until(dag, lambda: airflow._send("GET", f"/dags/{dag}").is_success)
    for number, state in enumerate(("success", "failed", "success", "success")):
        body = {"dag_run_id": f"counted-{number}", "logical_date": None}
        request(airflow, "POST", f"/dags/{dag}/dagRuns", json=body)
        path = f"/dags/{dag}/dagRuns/counted-{number}"
        request(airflow, "PATCH", path, json={"state": state})
    now = datetime.now(UTC)
    counts = airflow.ended_runs(now - timedelta(hours=1))
    assert counts[dag] == {"success": 3, "failed": 1}
    assert "team" not in counts
    later_counts = airflow.ended_runs(now + timedelta(hours=1))
    assert later_counts[dag] == {"success": 0, "failed": 0}

    command = [sys.executable, "-m", "monitoring.console"]
    variables = process_environment(settings)
    console = settings.console_address
    with running(command, settings.home / "console.log", **variables):
        wait_until("console", lambda: answers(f"{console}/health/live"))
        wait_until("page", lambda: "75.0 %" in httpx.get(console, timeout=60).text)
        page = httpx.get(console, timeout=60).text
        metrics = httpx.get(f"{console}/metrics", timeout=60).text
    link = f'<a href="{settings.link("airflow")}/dags/{dag}/runs">{dag}</a>'
    row = page.split(link)[1].partition("</tr>")[0]
    assert re.findall(r'number">([^<]*)<', row) == ["3", "4", "75.0 %"]
    assert f'gyre_dag_runs{{dag="{dag}",state="failed"}} 1.0' in metrics
    assert f'gyre_dag_success_ratio{{dag="{dag}"}} 0.75' in metrics


def start_at_approval(airflow, settings, model):
    """Start a run of the training DAG as if every task up to `register` had done its work."""
    tracking = Tracking(settings)
    tags = {
        "as_of": AS_OF.isoformat(),
        "reason": "drift of spend",
        "who": "airflow",
        "version": "2",
    }
    run_id = tracking.start_or_find_run(model, model, model, tags)
    y = np.arange(200) % 2
    better = Scored(np.where(y, 0.8, 0.2), 0.5)
    worse = Scored(np.where(y, 0.7, 0.3), 0.5)
    evaluations = measure_models(load_spec(MODEL), y, better, worse, "1")
    content = EVALUATIONS.dump_python(evaluations, mode="json")
    tracking.log_dict(run_id, content, EVALUATION)
    add_versions(settings, model, run_id)
    Registry(settings).set_stage(model, "2", "Staging")

    dag = f"train_{model}"
    runs = f"/dags/{dag}/dagRuns"
    tasks = f"{runs}/asks/taskInstances"
    conf = {"reason": "drift of spend"}
    body = {"dag_run_id": "asks", "logical_date": None, "conf": conf}
    wait_until(dag, lambda: airflow._send("GET", f"/dags/{dag}").is_success)
    request(airflow, "POST", runs, json=body)
    success = {"new_state": "success", "include_upstream": True}
    request(airflow, "PATCH", f"{tasks}/register", json=success)
    result = {"key": "return_value", "value": run_id}
    request(airflow, "POST", f"{tasks}/validate/xcomEntries", json=result)
    unpause(airflow, f"approve_{model}")
    unpause(airflow, dag)
    _, states = end_of(airflow, dag, "asks")
    assert states["ask"] == "success", "a training does not wait for a person"
    return run_id


def waiting(settings, model):
    """Return the open alerts that a version of the model waits, each with its link."""
    with closing(Alerts(settings)) as stored:
        rows = stored.rows(model)
    messages = [row["message"] for row in rows if row["cause"].endswith(WAITS)]
    assert all(is_open(row, datetime.now(UTC)) for row in rows)
    return messages


def answer(airflow, dag, run, choice, comment):
    """Answer as a person does, once there is a question; return the question."""
    details = f"/dags/{dag}/dagRuns/{run}/taskInstances/approval/-1/hitlDetails"

    def is_waiting():
        return task_state(airflow, dag, run, "approval") == "awaiting_input"

    wait_until("the question", is_waiting)
    link = f"{dag} waits for your answer: http://127.*/approval/req"
    with pytest.raises(StackError, match=link):
        airflow.follow(dag, run, lambda _: None)
    # The scheduler has yet to hear that the asking process has ended: told of it after an answer
    # of the same second, it takes the task for killed, and asks again.
    time.sleep(3)
    question = request(airflow, "GET", details)
    body = {"chosen_options": [choice], "params_input": {"comment": comment}}
    request(airflow, "PATCH", details, json=body)
    # Airflow commits after it has answered.
    wait_until("the answer", lambda: not is_waiting())
    return question


def end_of(airflow, dag, run):
    """Return the note and the states of the tasks of a run that has ended."""
    note = airflow.follow(dag, run, lambda _: None)["note"]
    return note, {row["task_id"]: row["state"] for row in airflow.tasks(dag, run)}


def test_a_person_rejects_a_version_and_approves_it_later(airflow, settings):
    run_id = start_at_approval(airflow, settings, APPROVED)
    dag = f"approve_{APPROVED}"
    question = answer(airflow, dag, run_id, "Reject", "too few rows")
    assert question["subject"] == (
        "Put version 2 of approved_model into production, in place of version 1?"
    )
    assert f"runs/{run_id}/artifacts/model_card.html)" in question["body"]
    note, states = end_of(airflow, dag, run_id)
    assert note == "not approved: version 2: rejected by admin: too few rows"
    assert states == {"approval": "success", "promote": "skipped"}
    run = Tracking(settings).run(run_id)
    assert (run.status, run.tags["outcome"]) == ("FINISHED", note)
    assert stages(settings, APPROVED)["2"] == "Staging"
    assert Registry(settings).production(APPROVED) == "1"
    assert waiting(settings, APPROVED) == []

    again = airflow.trigger(dag, {"mlflow_run": run_id})
    answer(airflow, dag, again, "Approve", "enough after all")
    note, states = end_of(airflow, dag, again)
    assert note == "version 2 is in production, in place of 1"
    assert states["promote"] == "success"
    with closing(Ledger(settings)) as ledger:
        row = ledger.rows(APPROVED)[-1]
    assert (row.to_version, row.who) == ("2", "airflow:admin")
    assert row.applied_at
    assert row.why == "drift of spend; enough after all"


def test_a_question_is_told_and_holds_up_no_training(airflow, settings):
    run_id = start_at_approval(airflow, settings, PATIENT)
    dag = f"approve_{PATIENT}"
    wait_until("the question", lambda: waiting(settings, PATIENT))
    (message,) = waiting(settings, PATIENT)
    page = f"{settings.link('airflow')}/dags/{dag}/runs/{run_id}/tasks/approval/"
    assert "Put version 2 of patient_model into production" in message
    assert page in message
    changes = {"name": PATIENT, "promotion": Promotion(approval=True)}
    spec = load_spec(MODEL).model_copy(update=changes)
    with pytest.raises(StackError, match=f"{dag} waits for your answer: http"):
        _first_training(airflow, spec, None)
    told = alerts(settings, "version 2 waits for approval")
    assert [row["message"] for row in told if row["model"] == PATIENT] == [message]

    train = f"train_{PATIENT}"
    run = airflow.trigger(train, {"as_of": AS_OF.isoformat()})
    state = partial(task_state, airflow, train, run, "validate")
    wait_until("the next training", lambda: state() in {"success", "failed"})
    request(airflow, "PATCH", f"/dags/{train}/dagRuns/{run}", json={"state": "failed"})
    assert task_state(airflow, dag, run_id, "approval") == "awaiting_input"
    answer(airflow, dag, run_id, "Reject", "")
    end_of(airflow, dag, run_id)
    assert waiting(settings, PATIENT) == []


def test_a_version_without_an_approval_in_time_is_not_promoted(airflow, settings):
    run_id = start_at_approval(airflow, settings, HASTY)
    dag = f"approve_{HASTY}"
    wait_until("its run", lambda: airflow.last_runs(dag))
    approval = partial(task_state, airflow, dag, run_id, "approval")
    wait_until("its end", lambda: approval() == "success")
    note, states = end_of(airflow, dag, run_id)
    assert note == "not approved: version 2: nobody answered within 0.0005 h"
    assert states == {"approval": "success", "promote": "skipped"}
    assert Registry(settings).production(HASTY) == "1"
    assert waiting(settings, HASTY) == []


def test_a_rollout_on_hold_has_its_reason_as_the_note_of_the_run(airflow, settings):
    add_versions(settings, CANARY)
    dag = f"rollout_{CANARY}"
    unpause(airflow, dag)
    note, states = end_of(airflow, dag, airflow.trigger(dag, {}))
    assert states == {"look": "skipped", "promoted": "skipped"}, note
    shadow = {"who": "ann", "why": "next", "role": "shadow", "action": STEP}
    with closing(Ledger(settings)) as ledger:
        promote(Registry(settings), ledger, CANARY, "2", **shadow)
    airflow.emit(f"rollout/{CANARY}")
    note, states = end_of(airflow, dag, started_by_events(airflow, dag))
    reason = "version 2 as shadow holds: it has answered 0 of 100 rows"
    assert note.startswith(f"{CANARY} {reason}")
    assert states == {"look": "success", "promoted": "skipped"}


def open_alerts(settings, subject, task):
    """Return how often each open alert about a failed task was counted."""
    with closing(Alerts(settings)) as stored:
        rows = stored.rows(subject)
    return [row["count"] for row in rows if row["cause"].startswith(f"{task} failed")]


def test_a_failed_task_of_any_dag_alerts_once_until_the_dag_succeeds(airflow, settings):
    unpause(airflow, "team")
    counts = partial(open_alerts, settings, "team", "team.divide")
    for count in (1, 2):
        run = airflow.trigger("team", {"by": 0})
        with pytest.raises(StackError, match="ZeroDivisionError"):
            airflow.follow("team", run, lambda _: None)
        # Airflow says that a task has failed before it calls back.
        wait_until("the alert", lambda count=count: counts() == [count])
    (alert,) = alerts(settings, "team.divide failed")
    assert alert["model"] == "team"
    airflow.follow("team", airflow.trigger("team", {"by": 2}), lambda _: None)
    wait_until("its end", lambda: not counts())


def test_a_wrong_spec_raises_an_alert_and_the_ingest_continues(airflow, settings):
    airflow.pool("tables", 1)
    unpause(airflow, "ingest")
    run = airflow.trigger("ingest", {})
    message = r"task read_specs: .*torn\.toml: schedule: .*@fortn"
    with pytest.raises(StackError, match=message):
        airflow.follow("ingest", run, lambda _: None)
    (alert,) = alerts(settings, "ingest.read_specs failed")
    assert "torn.toml: schedule: " in alert["message"]
    # There is no Redis.
    counts = partial(open_alerts, settings, "orders", "ingest.ingest_orders")
    wait_until("the ingest", counts)

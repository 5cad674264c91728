"""The shipped DAGs on a real Airflow of their own, beside MLflow and a fifth of the demo's customers.

Every DAG is paused until a test wants it. Three models stand beside the shipped one, equal to it
but that a person approves the versions of two, and that those of the third come into production
step by step; and a spec that is wrong.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Timer

import numpy as np
import pyarrow as pa
import pytest

from cli.verbs import signal
from core.errors import StackError
from core.settings import PROJECT
from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.ingest import raw_table
from feature_repo.source import pull
from feature_repo.views import write_views
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.decision_log import DecisionRow, newest_decisions, store_decision
from stack.airflow_api import AirflowApi
from stack.environment import airflow_environment, make_secrets, process_environment
from stack.processes import (
    end_stack,
    members,
    start,
    start_supervisor,
    title,
    wait_ready,
)
from stack.programs import PROGRAMS
from tests.conftest import (
    AS_OF,
    feast_apply,
    mlflow_server,
    new_settings,
    wait_until,
)
from tests.mlflow_server.conftest import client, stages
from training.artifacts import EVALUATION
from training.evaluate import compare
from training.gate import EVALUATIONS
from training.metrics import Scored

MODEL = "customer_churn_model"
TRAIN, MONITOR = f"train_{MODEL}", f"monitor_{MODEL}"
ORDERS = load_dataset("orders")
APPROVED, HASTY, CANARY = "approved_model", "hasty_model", "canary_model"
WAIT_HOURS = {APPROVED: 1, HASTY: 0.0005}
OWN_DAG = """
from airflow.sdk import dag, task

@task
def divide(**context):
    return 1 / context["params"]["by"]

@dag(params={"by": 1})
def own():
    divide()

own()
"""
"""A DAG that knows nothing of Gyre."""
pytestmark = pytest.mark.nightly


def copied_project(folder: Path) -> Path:
    """A copy of the project, with the three models more and fewer trees."""
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
    shutil.copy(PROJECT / "requirements.lock", folder)
    (folder / "dags" / "own.py").write_text(OWN_DAG)
    spec_file = folder / "models" / f"{MODEL}.toml"
    shipped = spec_file.read_text().replace("n_estimators = 100", "n_estimators = 10")
    spec_file.write_text(shipped)
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


def add_orders(settings):
    """What the demo has delivered by now of a fifth of the customers."""
    feast_apply(settings)
    rows = pull(settings, ORDERS, datetime.now(UTC)).read_all()
    rows = rows.filter(pa.array(rows["customer_id"].to_numpy() % 5 == 0))
    table = raw_table(settings, ORDERS)
    dated = rows.append_column("ingested_at", rows["order_ts"])
    table.merge(dated, ORDERS.key, rows.column_names)
    write_views(settings, ORDERS, table)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    today = datetime.now(UTC).date()
    users = {"airflow_users": "ann:user,bob:viewer"}
    home = tmp_path_factory.mktemp("home")
    settings = new_settings(home, demo_start=today, **users)
    for name in ("run", "logs"):
        (settings.home / name).mkdir()
    make_secrets(settings)
    airflow = str(Path(sys.executable).parent / "airflow")
    env = process_environment(settings) | airflow_environment(settings)
    subprocess.run([airflow, "db", "migrate"], env=env, capture_output=True, check=True)
    project = copied_project(tmp_path_factory.mktemp("project"))
    (settings.home / "project").symlink_to(project)
    theirs = {
        "PYTHONPATH": str(project),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
    }
    programs = [program for program in PROGRAMS if program.part == "airflow"]
    with mlflow_server(settings):
        start_supervisor(settings, programs, env | theirs)
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


def request(airflow, method, path, **more):
    return airflow._checked(airflow._send(method, path, **more))


def pause(airflow, dag, *, paused=True):
    """Press the switch beside the DAG's name, once it is parsed."""
    body = {"is_paused": paused}
    switched = partial(airflow._send, "PATCH", f"/dags/{dag}", json=body)
    wait_until(dag, lambda: switched().is_success)


def wait_for_state(airflow, dag, run, task, state):
    path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}"

    def is_there():
        now = request(airflow, "GET", path)["state"]
        assert now != "failed" or state == now
        return now == state

    wait_until(f"{task} {state}", is_there)


def signalled(airflow, dag, count):
    """The newest runs that events started, once there are `count`; oldest first."""
    runs = []

    def are_there():
        runs[:] = airflow.last_runs(dag, 50, run_type="asset_triggered")
        return len(runs) >= count

    wait_until(f"{count} runs of {dag}", are_there)
    assert len(runs) == count
    return runs[::-1]


def decide_to_retrain(settings, cause):
    """Store what the monitor stores when it decides; return when that was."""
    now = datetime.now(UTC)
    row = DecisionRow(
        model=MODEL,
        version="1",
        as_of=now,
        verdict="bad",
        action="retrain",
        rule="drift",
        reason=f"PSI of {cause}",
        cause=cause,
        words=f"bad: PSI of {cause}",
        inputs="{}",
        entities=1000,
    )
    store_decision(settings, row)
    return now


def tags_of(settings, dag, run):
    """Tags of the MLflow run that a training has opened."""
    runs = Tracking(settings).runs(load_spec(MODEL).experiment)
    return next(each.tags for each in runs if each.key == f"{dag}/{run}")


def opened(airflow, settings, run):
    """What the training is about, once it has opened its MLflow run; then it is ended."""
    wait_for_state(airflow, TRAIN, run, "validate", "success")
    end_run(airflow, TRAIN, run)
    return tags_of(settings, TRAIN, run)


def end_run(airflow, dag, run):
    request(airflow, "PATCH", f"/dags/{dag}/dagRuns/{run}", json={"state": "failed"})


@pytest.fixture(scope="module")
def versions(settings):
    """Two versions without files; the first is in production."""
    registry, api = Registry(settings), client(settings)
    api.create_registered_model(MODEL)
    run = api.create_run("0").info
    for _ in range(2):
        api.create_model_version(MODEL, f"{run.artifact_uri}/model", run.run_id)
    with closing(Ledger(settings)) as ledger:
        return promote(registry, ledger, MODEL, "1", who="ann", why="first")


def test_drifts_during_a_training_start_one_more_that_answers_them_all(
    airflow, settings, versions
):
    pause(airflow, TRAIN, paused=False)
    month_ago = (datetime.now(UTC) - timedelta(days=30)).isoformat()
    first = airflow.trigger(TRAIN, {"as_of": month_ago, "reason": "the first"})
    wait_for_state(airflow, TRAIN, first, "validate", "success")
    decide_to_retrain(settings, "drift of spend")
    newest = decide_to_retrain(settings, "drift of orders")
    with ThreadPoolExecutor(8) as pool:  # no write fails, however many come at once
        list(pool.map(lambda _: airflow.emit(f"drift/{MODEL}"), range(20)))
    assert airflow.run(TRAIN, first)["state"] == "running"
    end_run(airflow, TRAIN, first)

    (second,) = signalled(airflow, TRAIN, 1)
    tags = opened(airflow, settings, second["dag_run_id"])
    both = (
        "drift of spend: PSI of drift of spend; drift of orders: PSI of drift of orders"
    )
    cause = f"drift of orders, decided {newest:%Y-%m-%d %H:%M:%S}"
    assert (tags["reason"], tags["cause"]) == (both, cause)
    assert datetime.fromisoformat(tags["as_of"]) == newest
    assert tags["who"] == "airflow:asset_triggered"

    forced = airflow.trigger(TRAIN, {"force": True})
    tags = opened(airflow, settings, forced)
    assert (tags["reason"], tags["cause"]) == ("started in Airflow", "")
    assert len(signalled(airflow, TRAIN, 1)) == 1


def test_a_drift_while_training_is_paused_is_answered_once_it_is_unpaused(
    airflow, settings, versions
):
    before = airflow.last_runs(TRAIN, 50, run_type="asset_triggered")
    pause(airflow, TRAIN)
    newest = decide_to_retrain(settings, "drift while paused")
    airflow.emit(f"drift/{MODEL}")
    pause(airflow, TRAIN, paused=False)
    pause(airflow, MONITOR, paused=False)
    states = [looked_at(airflow)]  # as every hour
    run = signalled(airflow, TRAIN, len(before) + 1)[-1]
    tags = opened(airflow, settings, run["dag_run_id"])
    assert tags["cause"].startswith("drift while paused, decided ")
    assert datetime.fromisoformat(tags["as_of"]) == newest
    states.append(looked_at(airflow))
    assert states == [
        {"monitor": "success", "retrain": "success"},
        {"monitor": "success", "retrain": "skipped"},
    ]


def looked_at(airflow):
    run = airflow.trigger(MONITOR, {})
    airflow.follow(MONITOR, run, print)
    return {row["task_id"]: row["state"] for row in airflow.tasks(MONITOR, run)}


def test_a_promotion_from_the_shell_while_the_monitor_runs_is_looked_at_afterwards(
    airflow, settings, versions
):
    pause(airflow, MONITOR, paused=False)
    runs = [airflow.trigger(MONITOR, {}) for _ in range(2)]
    wait_for_state(airflow, MONITOR, runs[0], "monitor", "running")
    with closing(Ledger(settings)) as ledger:
        row = promote(Registry(settings), ledger, MODEL, "2", who="ann", why="next")
    signal(settings, f"promoted/{MODEL}")  # as `gyre promote` does
    assert airflow.run(MONITOR, runs[-1])["state"] in {"queued", "running"}
    (told,) = signalled(airflow, MONITOR, 1)
    airflow.follow(MONITOR, told["dag_run_id"], print)
    started = airflow.run(MONITOR, told["dag_run_id"])["start_date"]
    decisions = {each.as_of: each.version for each in newest_decisions(settings, MODEL)}
    assert decisions[datetime.fromisoformat(started)] == "2"
    assert row.time <= datetime.fromisoformat(started)


def test_a_run_is_followed_through_a_time_in_which_airflow_does_not_answer(
    airflow, settings
):
    pause(airflow, MONITOR, paused=False)
    run = airflow.trigger(MONITOR, {})
    servers = [
        process
        for process in members(settings.home)
        if "api_server" in title(process) or "api-server" in title(process)
    ]
    assert servers
    resume = Timer(3, lambda: [process.resume() for process in servers])
    with AirflowApi(settings, timeout=1) as impatient:
        for process in servers:
            process.suspend()
        resume.start()
        with pytest.raises(StackError, match="does not answer"):
            impatient.run(MONITOR, run)
        assert impatient.follow(MONITOR, run, print)["state"] == "success"


def test_each_person_has_the_role_that_the_settings_say_and_no_header_gives_one(
    airflow, settings
):
    passwords = json.loads((settings.home / "airflow" / "passwords.json").read_text())
    statuses = {}
    for name in ("ann", "bob"):
        login = {"username": name, "password": passwords[name]}
        token = airflow._http.post("/auth/token", json=login).json()["access_token"]
        answer = airflow._http.post(
            f"/api/v2/dags/{TRAIN}/dagRuns",
            json={"logical_date": None, "conf": {"as_of": "no time"}},
            headers={"Authorization": f"Bearer {token}"},
        )
        statuses[name] = answer.status_code
    assert statuses == {"ann": 200, "bob": 403}
    anybody = {"X-Forwarded-User": "ann", "Authorization": ""}
    assert airflow._http.get("/api/v2/dags", headers=anybody).status_code == 401


def registered(settings, model):
    """The run of version 2, which was measured beside version 1, the one in production."""
    api, tracking = client(settings), Tracking(settings)
    tags = {"as_of": AS_OF.isoformat(), "reason": "drift of spend", "who": "airflow"}
    run_id = tracking.start_or_find_run(model, model, model, tags)
    y = np.arange(200) % 2
    better, worse = (Scored(np.where(y, 0.5 + by, 0.5 - by), 0.5) for by in (0.3, 0.2))
    found = compare(load_spec(MODEL), y, better, worse, "1")
    tracking.log_dict(run_id, EVALUATIONS.dump_python(found, mode="json"), EVALUATION)
    api.create_registered_model(model)
    for _ in range(2):
        api.create_model_version(model, f"runs:/{run_id}/model", run_id)
    Registry(settings).set_stage(model, "2", "Staging")
    with closing(Ledger(settings)) as ledger:
        promote(Registry(settings), ledger, model, "1", who="ann", why="first")
    return run_id


def started_at_approval(airflow, model, run_id):
    """A run of `train_<MODEL>` as if every task up to `register` had done its work."""
    dag, run = f"train_{model}", "asks"
    body = {
        "dag_run_id": run,
        "logical_date": None,
        "conf": {"reason": "drift of spend"},
    }
    tasks = f"/dags/{dag}/dagRuns/{run}/taskInstances"
    pause(airflow, dag)
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
    tracking, registry = Tracking(settings), Registry(settings)
    runs = {model: registered(settings, model) for model in (HASTY, APPROVED)}
    dags = {
        model: started_at_approval(airflow, model, run) for model, run in runs.items()
    }
    dag, run = dags[APPROVED]
    found = answer(airflow, dag, run, "Reject", "too few rows")
    asked = "Put version 2 of approved_model into production, in place of version 1?"
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
    dag = f"rollout_{CANARY}"
    registry, api = Registry(settings), client(settings)
    api.create_registered_model(CANARY)
    run = api.create_run("0").info
    for _ in range(2):
        api.create_model_version(CANARY, f"{run.artifact_uri}/model", run.run_id)
    with closing(Ledger(settings)) as ledger:
        promote(registry, ledger, CANARY, "1", who="ann", why="first")
        promote(registry, ledger, CANARY, "2", who="ann", why="next", role="shadow")
    pause(airflow, dag, paused=False)
    airflow.emit(f"rollout/{CANARY}")
    (told,) = signalled(airflow, dag, 1)  # beside those of the clock
    note, states = ended(airflow, dag, told["dag_run_id"])
    said = f"{CANARY} version 2 as shadow holds: serving at {settings.serving_address} does not"
    assert note.startswith(said)
    assert states == {"look": "success", "promoted": "skipped"}


def test_the_home_page_shows_every_part_as_healthy(airflow):
    health = request(airflow, "GET", "/monitor/health")
    assert {part["status"] for part in health.values()} == {"healthy"}
    assert set(health) == {"metadatabase", "scheduler", "triggerer", "dag_processor"}


def alerted(settings, subject, task):
    """The alert that `task` failed, None before it."""
    with closing(Alerts(settings)) as alerts:
        rows = [
            row
            for row in alerts.rows(subject)
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
    failing = f"{MONITOR}.monitor"
    pause(airflow, MONITOR, paused=False)
    for count in (1, 2):
        run = airflow.trigger(MONITOR, {"as_of": "2026-05-01T00:00:00"})
        with pytest.raises(StackError, match="SettingsError: parameter as_of"):
            airflow.follow(MONITOR, run, lambda _: None)
        # Airflow tells that a task has failed before it calls back.
        wait_until(
            "counted",
            lambda n=count: (
                (alerted(settings, MODEL, failing) or {"count": 0})["count"] == n
            ),
        )
    (told,) = delivered(settings, failing)
    assert "SettingsError: parameter as_of" in told["message"]


def test_a_task_of_a_teams_own_dag_that_failed_alerts_until_the_dag_succeeds(
    airflow, settings
):
    pause(airflow, "own", paused=False)
    run = airflow.trigger("own", {"by": 0})
    with pytest.raises(StackError, match="ZeroDivisionError"):
        airflow.follow("own", run, lambda _: None)
    wait_until("the alert", lambda: alerted(settings, "own", "own.divide"))
    (told,) = delivered(settings, "own.divide")
    assert told["model"] == "own"
    airflow.follow("own", airflow.trigger("own", {"by": 2}), lambda _: None)
    wait_until("its end", lambda: not alerted(settings, "own", "own.divide"))


def test_a_broken_spec_is_alerted_of_by_the_ingest_until_it_is_repaired(
    airflow, settings
):
    task, torn = "ingest.read_specs", settings.home / "project" / "models" / "torn.toml"
    airflow.pool("tables", 1)
    pause(airflow, "ingest", paused=False)
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

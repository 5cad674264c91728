"""The whole stack as a user starts it: from nothing to a served prediction, and down to nothing."""

import json
import re
import subprocess
import time
from contextlib import ExitStack
from functools import partial

import httpx
import psutil
import psycopg
import pytest

from core.errors import StackError
from core.settings import PROJECT
from core.spec import load_spec
from mlflow_server.tracking import Tracking
from stack.airflow_api import AirflowApi
from tests.cli.clone import outer_environment, run, stack_environment
from tests.conftest import BIN, at_most, new_settings, wait_until
from tests.postgres import postgres_server

MODEL = "customer_churn_model"
FIELDS = {
    "customer_id", "prediction", "probability", "model_version", "request_id", "features_from",
    "in_population", "logged",
}  # fmt: skip

APART = {"up", "down", "backup", "restore"}
"""Commands that start, end or stop processes run in processes of their own."""


class Stack:
    """A stack of its own, driven through the commands of the README."""

    database = None

    def __init__(self, settings):
        self.settings = settings
        self.environment = stack_environment(settings)

    def run(self, command, code=0):
        """Return what a command of Gyre prints, errors last."""
        is_apart = command.split()[0] in APART
        program = BIN / "gyre" if is_apart else "gyre"
        return run(f"{program} {command}", PROJECT, self.environment, code, 1500)

    def ledger(self):
        return json.loads(self.run(f"ledger {MODEL} --json"))

    def production(self):
        return self.ledger()[-1]["to"]

    def predict(self):
        url = f"{self.settings.serving_address}/predict"
        return httpx.post(url, json={"customer_id": 4}, timeout=60)

    def processes(self):
        """Return files of the processes whose environment names this stack's folder."""
        command = f"grep -ls {self.settings.home} /proc/*/environ"
        return subprocess.getoutput(command)

    def supervisor(self):
        file = self.settings.home / "run" / "supervisord.pid"
        return psutil.Process(int(file.read_text()))

    def programs(self):
        """Return what the supervisor started; Airflow's tasks come and go below them."""
        return {process.pid for process in self.supervisor().children()}


@pytest.fixture(
    scope="module",
    params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.nightly)],
)
def stack(request, tmp_path_factory):
    """A stack whose databases are of either kind; `database` is the server of PostgreSQL."""
    folder = tmp_path_factory.mktemp("stack")
    with ExitStack() as opened:
        stack = Stack(new_settings(folder / "home"))
        if request.param == "PostgreSQL":
            server = opened.enter_context(postgres_server(folder / "postgres.log"))
            stack.database = server
            url = server.address.replace("s:", "sql:")
            stack.environment["GYRE_DATABASE_URL"] = url
        opened.callback(stack.run, "down")
        stack.first_output = stack.run("up")
        yield stack


def test_up_ends_with_a_prediction_of_a_version_that_is_in_the_ledger(stack):
    output = stack.first_output
    assert re.search(r'"customer_id":\d+,"prediction":[01]\.0', output)
    assert f"  {MODEL}: version 1 is in production" in output
    for address in (stack.settings.airflow_address, stack.settings.mlflow_address):
        assert address in output
    answer = stack.predict()
    assert (answer.status_code, set(answer.json())) == (200, FIELDS)
    assert (answer.json()["model_version"], answer.json()["logged"]) == ("1", True)
    (row,) = stack.ledger()
    assert (row["from"], row["to"], row["percent"]) == (None, "1", 100)
    assert row["applied_at"]
    assert (row["who"], row["why"]) == ("airflow:admin", "first version, by gyre up")
    for name in ("secrets.json", "passwords.json", "airflow.cfg"):
        file = stack.settings.home / "airflow" / name
        assert file.stat().st_mode & 0o77 == 0


@pytest.mark.timed
def test_a_second_up_changes_nothing_and_a_second_training_learns_nothing(stack):
    ledger = stack.ledger()
    programs = stack.programs()
    assert len(programs) > 5  # Redis, MLflow, Airflow's three or more, serving, console
    began = time.monotonic()
    assert f'"model_version":"{stack.production()}"' in stack.run("up")
    assert time.monotonic() - began < at_most(60)
    assert stack.ledger() == ledger
    assert stack.programs() == programs
    assert "nothing new to learn" in stack.run(f"train {MODEL}")


def test_the_command_of_airflow_runs_dags_in_a_shell_with_what_gyre_env_prints(stack):
    with AirflowApi(stack.settings) as airflow:
        dag_count = airflow._get("/dags")["total_entries"]
        for dag in ("ingest", f"train_{MODEL}"):
            # The stack's scheduler would take tasks of a DAG that is not paused.
            commands = f"""eval "$(gyre env)"
            airflow dags pause --yes {dag}
            airflow dags test {dag}
            airflow dags unpause --yes {dag}"""
            given = {
                k: v for k, v in stack.environment.items() if k.startswith("GYRE_")
            }
            manual_runs = partial(airflow.last_runs, dag, 50, run_type="manual")
            run_count = len(manual_runs())
            run(commands, PROJECT, outer_environment() | given, 0, 1500)
            newest, *older = manual_runs()
            assert (newest["state"], len(older)) == ("success", run_count)
        assert airflow._get("/dags")["total_entries"] == dag_count


def test_a_promotion_starts_a_monitoring_run(stack):
    dag = f"monitor_{MODEL}"
    with AirflowApi(stack.settings) as airflow:
        started = partial(airflow.last_runs, dag, run_type="asset_triggered")
        wait_until("a run of the monitor", started)
        run = airflow.follow(dag, started()[0]["dag_run_id"], lambda _: None)
    assert run["state"] == "success"


def test_a_failed_task_is_named_with_its_error_and_its_mlflow_run_fails_too(
    stack,
):
    dag = f"train_{MODEL}"
    tracking = Tracking(stack.settings)
    experiment = load_spec(MODEL).experiment
    run_id = tracking.start_or_find_run(experiment, f"{dag}/dies", "dies", {})
    conf = {"as_of": "2026-05-01T00:00:00", "reason": "try"}
    body = {"dag_run_id": "dies", "logical_date": None, "conf": conf}
    error = "task validate: SettingsError: parameter as_of"
    with AirflowApi(stack.settings) as airflow:
        airflow._send("POST", f"/dags/{dag}/dagRuns", json=body)
        with pytest.raises(StackError, match=error):
            airflow.follow(dag, "dies", lambda _: None)
    wait_until("failed", lambda: tracking.run(run_id).status == "FAILED")


def test_status_shows_the_state_versions_checks_and_memory_of_the_stack(stack):
    status = json.loads(stack.run("status --json"))
    assert status["up"] is True
    checks = {check["name"] for check in status["checks"][MODEL]}
    assert checks >= {"production", "features", "alerts"}
    text = stack.run("status")
    megabytes = re.search(r"all processes\s+(\d+)", text)
    assert 300 < int(megabytes[1]) < 1800
    assert re.search(rf"{MODEL} +\w+ +{stack.production()} +(just now|\d)", text)


@pytest.mark.nightly
def test_each_tool_has_a_postgresql_schema_and_continues_after_a_restart_of_postgresql(
    stack,
):
    if not stack.database:
        pytest.skip("SQLite needs no server")
    with psycopg.connect(stack.database.address) as connection:
        query = "SELECT table_schema, table_name FROM information_schema.tables"
        tables = set(connection.execute(query).fetchall())
    assert tables >= {
        ("airflow", "dag_run"),
        ("feast", "feature_views"),
        ("gyre", "ledger"),
        ("mlflow", "registered_models"),
    }
    assert "public" not in {schema for schema, _ in tables}
    assert not [*stack.settings.home.glob("**/*.db")]

    stack.database.stop()
    assert stack.predict().status_code == 200
    refusal = stack.run(f"promote {MODEL} 1 --reason try", 1)
    assert "GYRE_DATABASE_URL postgresql" in refusal
    stack.database.start()
    stack.run(f"train {MODEL} --force --reason 'after the restart'")
    version = stack.production()
    wait_until(version, lambda: stack.predict().json()["model_version"] == version)
    health = f"{stack.settings.airflow_address}/api/v2/monitor/health"
    wait_until(
        "Airflow", lambda: '"unhealthy"' not in httpx.get(health, timeout=60).text
    )


def test_down_ends_every_process_of_a_killed_supervisor_and_up_starts_the_stack_again(
    stack,
):
    version = stack.production()
    stack.supervisor().kill()
    stack.run("down")
    wait_until("the end of all", lambda: not stack.processes())
    assert f'"model_version":"{version}"' in stack.run("up")

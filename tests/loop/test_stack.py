"""The whole stack as a user starts it: from nothing to a served prediction, and down to nothing."""

import json
import re
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

import httpx
import psycopg
import pytest

from cli.demo import AGE, DemoRun
from core.errors import StackError
from core.project import PROJECT
from core.spec import load_spec
from mlflow_server.api.tracking import Tracking
from stack.airflow_api import AirflowApi
from tests.conftest import at_most, new_settings, wait_until
from tests.support.stores.postgres import postgres_server
from tests.support.tools.clone import outer_environment, run
from tests.support.tools.stack import MODEL, Stack

FIRST = datetime.now(UTC) - AGE
"""As of when the first version is: the customers of today are others."""
FIELDS = {
    "customer_id", "prediction", "probability", "model_version", "request_id", "features_from",
    "in_population", "logged",
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.nightly)],
)
def stack(request, tmp_path_factory):
    """A stack whose databases are of either kind; `database` is the server of PostgreSQL."""
    folder = tmp_path_factory.mktemp("stack")
    with ExitStack() as opened:
        settings = new_settings(folder / "home", demo_start=None)
        server = None
        if request.param == "PostgreSQL":
            server = opened.enter_context(postgres_server(folder / "postgres.log"))
            url = server.address.replace("s:", "sql:")
            settings = settings.model_copy(update={"database_url": url})
        stack = Stack(settings)
        if server:
            stack.database = server
            stack.environment["GYRE_DATABASE_URL"] = url
        opened.callback(stack.run, "down")
        stack.first_output = stack.run(f"up --as-of {FIRST.isoformat()}")
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
    assert stack.settings.home.stat().st_mode & 0o7777 == 0o700
    passwords = json.loads(
        (stack.settings.home / "airflow" / "passwords.json").read_text()
    )
    assert passwords["admin"] not in output  # it goes into a file here


def test_each_program_answers_its_own_names_and_takes_no_write_of_another_site(stack):
    settings = stack.settings
    for page, write in (
        (f"{settings.airflow_address}/api/v2/version", "/auth/token"),
        (f"{settings.mlflow_address}/version", "/api/2.0/mlflow/experiments/create"),
        (f"{settings.serving_address}/health/live", "/predict"),
        (f"{settings.console_address}/health/live", "/"),
    ):
        assert httpx.get(page, timeout=60).status_code == 200
        evil = httpx.get(page, headers={"host": "evil.example"}, timeout=60)
        assert evil.status_code == 403
        address = page.rsplit("/", page.count("/") - 2)[0]
        for header in (
            {"origin": "http://127.0.0.1:1"},
            {"sec-fetch-site": "cross-site"},
        ):
            answer = httpx.post(address + write, json={}, headers=header, timeout=60)
            assert answer.status_code == 403
            assert "another site" in answer.text


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
    again = stack.run(f"train {MODEL} --as-of {FIRST.isoformat()}")
    assert "nothing new to learn" in again


def test_drift_starts_a_training_whose_version_answers_in_place_of_the_first(stack):
    with AirflowApi(stack.settings) as airflow:
        assert airflow.last_runs("a_dag_not_read_yet") == []
        assert DemoRun(stack.settings, airflow).run(canary=False)
    _, second = stack.ledger()
    assert (second["from"], second["to"]) == ("1", "2")
    assert second["who"] == "airflow:asset_triggered"
    assert re.match(r"drift of version 1: .*\w+: PSI \d", second["why"])
    assert stack.predict().json()["model_version"] == "2"


def test_the_command_of_airflow_works_in_a_shell_with_what_gyre_env_prints(stack):
    own = {k: v for k, v in stack.environment.items() if k.startswith("GYRE_")}

    def airflow(*commands):
        lines = ['eval "$(gyre env)"', *(f"airflow {command}" for command in commands)]
        return run("\n".join(lines), PROJECT, outer_environment() | own, 0, 1500)

    with AirflowApi(stack.settings) as api:
        dag_count = api._get("/dags")["total_entries"]
        for dag in ("ingest", f"train_{MODEL}"):
            manual_runs = partial(api.last_runs, dag, 50, run_type="manual")
            run_count = len(manual_runs())
            # The stack's scheduler would take tasks of a DAG that is not paused.
            airflow(
                f"dags pause --yes {dag}",
                f"dags test {dag}",
                f"dags unpause --yes {dag}",
            )
            newest, *older = manual_runs()
            assert (newest["state"], len(older)) == ("success", run_count)
        assert api._get("/dags")["total_entries"] == dag_count
    assert f"train_{MODEL}" in airflow("dags list")
    assert "register" in airflow(f"tasks list train_{MODEL}")
    assert f"drift/{MODEL}" in airflow("assets list")
    assert "manual__" in airflow("dags list-runs ingest", "dags next-execution ingest")
    airflow("dags trigger maintain", "pools list", "jobs check", "db check")


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
    metrics = httpx.get(f"{stack.settings.console_address}/metrics", timeout=60).text
    for program in ("serving", "mlflow", "redis", "scheduler", "consumer", "console"):
        for name in ("cpu_seconds_total", "memory_bytes"):
            sample = rf'^gyre_{name}{{program="{program}"}} [\d.e+]+$'
            assert re.search(sample, metrics, re.MULTILINE), sample
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

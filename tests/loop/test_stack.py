"""The whole stack as a user starts it: from nothing to a served prediction, and down to nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import psycopg
import pytest

from core.errors import StackError
from core.settings import PROJECT
from core.spec import load_spec
from mlflow_server.tracking import Tracking
from stack.airflow_api import AirflowApi, error_of
from stack.environment import child_environment, load_secrets, make_secrets
from tests.conftest import BIN, at_most, new_settings, unused_port, wait_until
from tests.postgres import postgres_server
from tests.preloaded import commands_folder

if TYPE_CHECKING:
    from pathlib import Path

    from core.settings import Settings
    from tests.postgres import Postgres

MODEL = "customer_churn_model"
FIELDS = {
    "customer_id", "prediction", "probability", "model_version", "request_id", "features_from",
    "in_population", "logged",
}  # fmt: skip

APART = {"up", "down", "backup", "restore"}
"""Commands that start, end or stop processes run in processes of their own."""


class Stack:
    """A stack of its own, driven through the commands of the README."""

    database: Postgres | None = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("GYRE_")}
        self.environment = inherited | child_environment(settings)

    def run(self, *command: str, code: int = 0, cwd: Path = PROJECT) -> str:
        folder = BIN if command[1] in APART else commands_folder()
        done = subprocess.run(
            [folder / command[0], *command[1:]], env=self.environment, cwd=cwd,
            capture_output=True, text=True, check=False, timeout=1500,
        )  # fmt: skip
        assert done.returncode == code, (
            f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout + done.stderr

    def ledger(self) -> list[dict[str, Any]]:
        return list(json.loads(self.run("gyre", "ledger", MODEL, "--json")))

    def production(self) -> str:
        return str(self.ledger()[-1]["to"])

    def predict(self, customer: int = 4) -> httpx.Response:
        url = f"{self.settings.serving_address}/predict"
        return httpx.post(url, json={"customer_id": customer}, timeout=60)

    def processes(self) -> list[psutil.Process]:
        """Whatever of this machine speaks of this stack's folder."""
        home, found = str(self.settings.home), []
        for process in psutil.process_iter():
            try:
                spoken = [*process.cmdline(), *process.environ().values()]
            except (psutil.Error, OSError):
                continue
            if any(home in word for word in spoken) and process.pid != os.getpid():
                found.append(process)
        return found

    def programs(self) -> set[int]:
        """What the supervisor started; Airflow's tasks come and go below them."""
        supervisor = min(self.processes(), key=psutil.Process.create_time)
        return {process.pid for process in supervisor.children()}


@pytest.fixture(
    scope="module",
    params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.nightly)],
)
def stack(request, tmp_path_factory):
    """A stack whose databases are of either kind; `database` is the server of PostgreSQL."""
    folder = tmp_path_factory.mktemp("stack")
    with ExitStack() as opened:
        made = Stack(new_settings(folder / "home"))
        if request.param == "PostgreSQL":
            made.database = opened.enter_context(
                postgres_server(folder / "postgres.log")
            )
            made.environment["GYRE_DATABASE_URL"] = made.database.address.replace(
                "s:", "sql:"
            )
        opened.callback(made.run, "gyre", "down")
        made.first = made.run("gyre", "up")
        yield made


@pytest.fixture
def airflow(stack):
    with AirflowApi(stack.settings) as api:
        yield api


def test_up_ends_with_a_prediction_and_the_addresses(stack):
    assert re.search(r'"customer_id":\d+,"prediction":[01]\.0', stack.first)
    for step in (
        "processes",
        "features",
        "ingest",
        f"model {MODEL}",
        f"prediction of {MODEL}",
    ):
        assert re.search(rf"  {step}.*: [\d.]+ s", stack.first)
    assert f"  {MODEL}: version 1 is in production" in stack.first
    for task in (
        "validate",
        "dataset",
        "train",
        "evaluate",
        "gate",
        "register",
        "promote",
    ):
        assert re.search(rf"{task}: success, [\d.]+ s", stack.first)
    for address in (stack.settings.airflow_address, stack.settings.mlflow_address):
        assert address in stack.first


def test_an_answer_has_every_field_and_an_unknown_customer_is_named(stack):
    answer = stack.predict()
    assert (answer.status_code, set(answer.json())) == (200, FIELDS)
    assert (answer.json()["model_version"], answer.json()["logged"]) == (
        stack.production(),
        True,
    )
    unknown = stack.predict(99_999_999)
    assert unknown.status_code == 404
    assert "99999999" in unknown.text


def test_the_ledger_has_one_applied_row_with_who_and_why(stack):
    row = stack.ledger()[0]
    assert (row["from"], row["to"], row["percent"]) == (None, "1", 100)
    assert row["applied_at"]
    assert row["who"] == "airflow:admin"
    assert row["why"] == "first version, by gyre up"


def test_feast_apply_by_itself_and_plain_feast_reads(stack):
    for _ in range(2):
        stack.run("feast", "apply", cwd=PROJECT / "feature_repo")
    code = (
        "from feast import FeatureStore\n"
        "store = FeatureStore(repo_path='.')\n"
        "names = ['customer_features:total_orders_30d']\n"
        "print(store.get_online_features(names, [{'customer_id': 4}]).to_dict())\n"
    )
    found = stack.run("python", "-c", code, cwd=PROJECT / "feature_repo")
    assert re.search(r"'total_orders_30d': \[\d+\]", found)


@pytest.mark.timed
def test_again_changes_nothing_and_nothing_new_is_said(stack):
    before, programs = stack.ledger(), stack.programs()
    began = time.monotonic()
    assert f'"model_version":"{stack.production()}"' in stack.run("gyre", "up")
    assert time.monotonic() - began < at_most(60)
    assert stack.ledger() == before
    assert len(programs) > 5  # Redis, MLflow, Airflow's three or more, serving, console
    assert stack.programs() == programs
    assert "nothing new to learn" in stack.run("gyre", "train", MODEL)


def test_the_promotion_of_up_was_looked_at_and_an_unknown_signal_is_refused(
    stack, airflow
):
    def looked():
        return airflow.last_runs(f"monitor_{MODEL}", run_type="asset_triggered")

    wait_until("a run of the monitor", looked)
    airflow.follow(f"monitor_{MODEL}", looked()[0]["dag_run_id"], lambda _: None)
    with pytest.raises(StackError, match="Airflow knows no asset promoted/nothing"):
        airflow.emit("promoted/nothing")


def test_a_failed_task_is_named_with_its_error_and_its_training_has_failed_in_mlflow_too(
    stack, airflow
):
    dag, run, tracking = f"train_{MODEL}", "dies", Tracking(stack.settings)
    experiment = load_spec(MODEL).experiment
    run_id = tracking.start_or_find_run(experiment, f"{dag}/{run}", run, {})
    conf = {"as_of": "2026-05-01T00:00:00", "reason": "try"}
    body = {"dag_run_id": run, "logical_date": None, "conf": conf}
    airflow._checked(airflow._send("POST", f"/dags/{dag}/dagRuns", json=body))
    with pytest.raises(
        StackError, match=r"task validate: SettingsError: parameter as_of"
    ):
        airflow.follow(dag, run, lambda _: None)
    wait_until("failed", lambda: tracking.run(run_id).status == "FAILED")
    airflow.note(dag, run, "n" * 2000)
    assert airflow.run(dag, run)["note"] == "n" * 1000
    airflow.note(dag, run, "n" * 2000, "[Console](http://console)")
    whole = airflow.run(dag, run)["note"]
    assert (len(whole), whole[-28:]) == (1000, " · [Console](http://console)")


def test_refusals_and_silence_of_airflow_are_one_clear_line(stack, airflow):
    with pytest.raises(StackError, match=r"Airflow refused GET .*nothing.*404"):
        airflow.run("nothing", "x")
    airflow.pool("one", 1)
    airflow.pool("one", 1)
    dead = stack.settings.model_copy(update={"airflow_port": unused_port()})
    with AirflowApi(dead) as nobody, pytest.raises(StackError, match="does not answer"):
        nobody.run("x", "y")


def test_the_last_error_of_a_log_is_told():
    detail = {"error_detail": [{"exc_type": "A", "exc_value": "b"}], "level": "error"}
    assert error_of([{"event": "x"}, detail, {"event": "after"}]) == "A: b"
    assert error_of([{"event": "bad", "level": "error"}]) == "bad"
    assert error_of([]) == "its log has no error"


def test_secrets_are_their_owners_alone_and_made_once(stack):
    folder, before = stack.settings.home / "airflow", load_secrets(stack.settings)
    for name in ("secrets.json", "passwords.json"):
        assert (folder / name).stat().st_mode & 0o77 == 0
    make_secrets(stack.settings)
    assert load_secrets(stack.settings) == before


@pytest.mark.nightly
def test_a_promotion_is_served_within_five_seconds_without_a_failed_request(
    stack, airflow
):
    before = stack.production()
    monitor = f"monitor_{MODEL}"

    def looks():
        return len(airflow.last_runs(monitor, 50, run_type="asset_triggered"))

    looked = looks()
    said = stack.run("gyre", "train", MODEL, "--force", "--reason", "another version")
    assert "Airflow does not hear" not in said
    wait_until("a look of the monitor", lambda: looks() > looked)
    version = stack.production()
    assert int(version) > int(before)
    wait_until("it", lambda: stack.predict().json()["model_version"] == version, 5)
    stack.run("gyre", "rollback", MODEL, "--reason", "try")
    until, seen = time.monotonic() + 5, []
    while time.monotonic() < until and seen[-1:] != [before]:
        answer = stack.predict()
        assert answer.status_code == 200
        seen.append(answer.json()["model_version"])
    assert seen[-1] == before

    the_alias_moved_by_hand_is_served_and_written_down(stack, before, version)


def the_alias_moved_by_hand_is_served_and_written_down(stack, before, version):
    code = (
        f"import mlflow\nclient = mlflow.MlflowClient('{stack.settings.mlflow_address}')\n"
        f"client.set_registered_model_alias('{MODEL}', 'production', '{version}')\n"
    )
    stack.run("python", "-c", code)
    wait_until("it", lambda: stack.predict().json()["model_version"] == version, 5)
    row = stack.ledger()[-1]
    assert (row["from"], row["to"], row["who"]) == (before, version, "mlflow-ui")


def test_status_says_what_is_up_what_serves_and_how_much_memory_it_takes(stack):
    found = json.loads(stack.run("gyre", "status", "--json"))
    assert found["up"] is True
    text = stack.run("gyre", "status")
    total = re.search(r"all processes\s+(\d+)", text)
    assert total is not None
    assert 300 < int(total[1]) < 1800
    assert re.search(
        rf"{MODEL} +\w+ +{stack.production()} +(just now|\d+ \w+ ago)", text
    )
    assert found["models"][MODEL]["version"] == stack.production()
    assert {check["name"] for check in found["checks"][MODEL]} >= {
        "production",
        "features",
        "alerts",
    }


@pytest.mark.nightly
def test_after_its_database_was_restarted_the_stack_goes_on(stack):
    if not stack.database:
        pytest.skip("SQLite needs no server")
    stack.database.stop()
    assert stack.predict().status_code == 200
    refused = stack.run("gyre", "promote", MODEL, "1", "--reason", "try", code=1)
    assert "GYRE_DATABASE_URL postgresql" in refused
    stack.database.start()
    stack.run("gyre", "train", MODEL, "--force", "--reason", "after the restart")
    wait_until(
        "it", lambda: stack.predict().json()["model_version"] == stack.production()
    )
    airflow = f"{stack.settings.airflow_address}/api/v2/monitor/health"
    wait_until(
        "Airflow", lambda: '"unhealthy"' not in httpx.get(airflow, timeout=60).text
    )


@pytest.mark.nightly
def test_each_tool_has_a_schema_of_its_own_and_no_sqlite_file_is_left(stack):
    if not stack.database:
        pytest.skip("SQLite has a file for each")
    with psycopg.connect(stack.database.address) as connection:
        asked = "SELECT table_schema, table_name FROM information_schema.tables"
        found = set(connection.execute(asked).fetchall())
    assert found >= {
        ("airflow", "dag_run"), ("feast", "feature_views"), ("gyre", "ledger"),
        ("mlflow", "registered_models"),
    }  # fmt: skip
    assert not [name for schema, name in found if schema == "public"]
    assert not [*stack.settings.home.glob("**/*.db")]


def test_after_the_supervisor_was_killed_down_leaves_nothing_and_up_comes_back(stack):
    version = stack.production()
    pid = int((stack.settings.home / "run" / "supervisord.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    stack.run("gyre", "down")
    wait_until("the end of all", lambda: not stack.processes())
    assert f'"model_version":"{version}"' in stack.run("gyre", "up")

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

from core.settings import PROJECT
from stack.environment import child_environment
from tests.conftest import BIN, new_settings, wait_until
from tests.postgres import postgres_server

if TYPE_CHECKING:
    from pathlib import Path

    from core.settings import Settings
    from tests.postgres import Postgres

MODEL = "customer_churn_model"
FIELDS = {
    "customer_id", "prediction", "probability", "model_version", "request_id", "features_from",
    "in_population", "logged",
}  # fmt: skip

pytestmark = pytest.mark.timeout(600)


class Stack:
    """A stack of its own, driven through the commands of the README."""

    database: Postgres | None = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("GYRE_")}
        self.environment = inherited | child_environment(settings)

    def run(self, *command: str, code: int = 0, cwd: Path = PROJECT) -> str:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]], env=self.environment, cwd=cwd,
            capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ledger(self) -> list[dict[str, Any]]:
        return list(json.loads(self.run("gyre", "ledger", MODEL, "--json")))

    def production(self) -> str:
        return str(self.ledger()[-1]["to"])

    def predict(self, customer: int = 4) -> httpx.Response:
        url = f"{self.settings.serving_address}/predict"
        return httpx.post(url, json={"customer_id": customer}, timeout=5)

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
    scope="module", params=["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.nightly)]
)
def stack(request, tmp_path_factory):
    """A stack whose databases are of either kind; `database` is the server of PostgreSQL."""
    folder = tmp_path_factory.mktemp("stack")
    with ExitStack() as opened:
        made = Stack(new_settings(folder / "home"))
        if request.param == "PostgreSQL":
            made.database = opened.enter_context(postgres_server(folder / "postgres.log"))
            made.environment["GYRE_DATABASE_URL"] = made.database.address.replace("s:", "sql:")
        opened.callback(made.run, "gyre", "down")
        made.first = made.run("gyre", "up")
        yield made


def test_up_ends_with_a_prediction_and_the_addresses(stack):
    assert re.search(r'"customer_id":\d+,"prediction":[01]\.0', stack.first)
    for step in ("processes", "features", "ingest", f"model {MODEL}", f"prediction of {MODEL}"):
        assert re.search(rf"  {step}.*: [\d.]+ s", stack.first)
    assert f"  {MODEL}: version 1 is in production" in stack.first
    for task in ("validate", "dataset", "train", "evaluate", "gate", "register", "promote"):
        assert re.search(rf"{task}: success, [\d.]+ s", stack.first)
    for address in (stack.settings.airflow_address, stack.settings.mlflow_address):
        assert address in stack.first


def test_an_answer_has_every_field_and_an_unknown_customer_is_named(stack):
    answer = stack.predict()
    assert (answer.status_code, set(answer.json())) == (200, FIELDS)
    assert (answer.json()["model_version"], answer.json()["logged"]) == (stack.production(), True)
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


def test_again_changes_nothing_and_nothing_new_is_said(stack):
    before, programs = stack.ledger(), stack.programs()
    began = time.monotonic()
    assert f'"model_version":"{stack.production()}"' in stack.run("gyre", "up")
    assert time.monotonic() - began < 60
    assert stack.ledger() == before
    assert len(programs) > 5  # Redis, MLflow, Airflow's three or more, serving, console
    assert stack.programs() == programs
    assert "nothing new to learn" in stack.run("gyre", "train", MODEL)


@pytest.mark.nightly
def test_a_promotion_is_served_within_five_seconds_without_a_failed_request(stack):
    before = stack.production()
    stack.run("gyre", "train", MODEL, "--force", "--reason", "another version")
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
    assert re.search(rf"{MODEL} +\w+ +version {stack.production()}, since \d{{4}}-", text)
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
    wait_until("it", lambda: stack.predict().json()["model_version"] == stack.production(), 60)
    airflow = f"{stack.settings.airflow_address}/api/v2/monitor/health"
    wait_until("Airflow", lambda: '"unhealthy"' not in httpx.get(airflow, timeout=9).text)


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
    wait_until("the end of all", lambda: not stack.processes(), 20)
    assert f'"model_version":"{version}"' in stack.run("gyre", "up")

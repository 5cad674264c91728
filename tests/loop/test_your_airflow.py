"""docs/how-to/your-airflow.md: its commands, run as they stand there, on another Airflow."""

import re
import shutil
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from core.errors import StackError
from core.project import CLONE
from core.settings import load_settings
from core.spec import load_spec
from mlflow_server.alerts import Alerts
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from monitoring.decisions.store import DecisionRow, store_decision
from stack.airflow_api import AirflowApi
from stack.supervisor import end_stack, members, states
from tests.conftest import new_settings, wait_until
from tests.support.tools.clone import few_orders, fewer_trees, outer_environment, run
from tests.support.tools.other_airflow import PASSWORD, RELEASES, USER, OtherAirflow

PAGE = (CLONE / "docs" / "how-to" / "your-airflow.md").read_text()
COMMANDS, PRINT_AGAIN = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INSTALL, COMMANDS = COMMANDS.split("\n", 1)
MODEL = "customer_churn_model"
ASKING = "asking_model"
pytestmark = pytest.mark.nightly


def make_project(folder):
    """A project with fewer rows and trees, and a second model whose versions a person approves."""
    for name in ("models", "feature_repo", "data"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CLONE / name, folder / name, ignore=ignored)
    few_orders(folder / "data" / "cdnow_orders.parquet")
    spec = folder / "models" / f"{MODEL}.toml"
    fewer_trees(spec)
    text = spec.read_text().replace(f'name = "{MODEL}"', f'name = "{ASKING}"', 1)
    text = re.sub(
        '^experiment = ".*"', f'experiment = "{ASKING}"', text, flags=re.MULTILINE
    )
    asking = spec.with_name(f"{ASKING}.toml")
    asking.write_text(f"{text}\n[promotion]\napproval = true\n")


def write_env(settings, airflow):
    values = {
        "AIRFLOW_URL": airflow.address,
        "AIRFLOW_USER": USER,
        "AIRFLOW_PASSWORD": PASSWORD,
    }
    for name in ("serving", "console", "mlflow", "redis"):
        values[f"{name}_port".upper()] = getattr(settings, f"{name}_port")
    lines = [f"GYRE_{name}={value}\n" for name, value in values.items()]
    settings.home.mkdir()
    (settings.home / "gyre.env").write_text("".join(lines))


@pytest.fixture(scope="module", params=RELEASES)
def team(request, tmp_path_factory):
    """Another Airflow, and a stack of Gyre that the page's commands have started beside it."""
    folder = tmp_path_factory.mktemp("team")
    airflow = OtherAirflow(folder, request.param)
    project = folder / "project"
    project.mkdir()
    make_project(project)
    settings = new_settings(folder / "home")
    write_env(settings, airflow)
    environment = {
        name: value
        for name, value in outer_environment().items()
        if not name.startswith("AIRFLOW")
    }
    environment |= airflow.environment
    environment |= {"GYRE_HOME": str(settings.home), "GYRE_PROJECT": str(project)}
    settings = load_settings(home=settings.home)
    with airflow.started():
        try:
            output = run(COMMANDS, CLONE, environment, 0, 1700)
            yield airflow, settings, environment, output
        finally:
            end_stack(settings)
    assert members(settings.home) == []


def task_states(api, dag, run):
    return {row["task_id"]: row["state"] for row in api.tasks(dag, run)}


def decide_to_retrain(settings, project):
    """Store what the monitor stores when it finds drift; the new seed is something new to learn."""
    spec = Path(project) / "models" / f"{MODEL}.toml"
    spec.write_text(spec.read_text().replace("seed = ", "seed = 1"))
    row = DecisionRow(
        MODEL, "1", datetime.now(UTC), "bad", "retrain", "drift", "PSI of spend", "drift of spend",
        "bad: PSI of spend", "{}", 1000, created=Registry(settings).assignment(MODEL).created,
    )  # fmt: skip
    store_decision(settings, row)


def open_alerts(settings, task):
    with closing(Alerts(settings)) as stored:
        rows = stored.rows(MODEL)
    return [row for row in rows if row["cause"].startswith(f"{task} failed")]


def test_the_commands_of_the_page_end_with_a_prediction_and_drift_starts_a_training(
    team,
):
    airflow, settings, environment, output = team
    assert INSTALL == "make install"
    assert Registry(settings).production(MODEL) == "1"
    assert f"Airflow   {airflow.address}" in output
    assert f"user {USER}" in output
    assert PASSWORD not in output
    assert {"airflow-api", "scheduler", "dag-processor"}.isdisjoint(states(settings))
    decide_to_retrain(settings, environment["GYRE_PROJECT"])
    with AirflowApi(settings) as api:
        dag = f"monitor_{MODEL}"
        run_id = api.trigger(dag, {})
        note = api.follow(dag, run_id, print)["note"]
        assert note.startswith(f"{MODEL} version 1: insufficient data")
        assert task_states(api, dag, run_id)["retrain"] == "success"
        train = f"train_{MODEL}"

        def answers():
            return api.last_runs(train, 5, run_type="asset_triggered")

        wait_until("a training of the drift", answers)
        answer = api.follow(train, answers()[-1]["dag_run_id"], print)
        states_of_run = task_states(api, train, answer["dag_run_id"])
        assert states_of_run["evaluate"] == "success"
    key = f"{train}/{answer['dag_run_id']}"
    trainings = Tracking(settings).runs(load_spec(MODEL).experiment)
    (tags,) = (training.tags for training in trainings if training.key == key)
    assert tags["reason"] == "drift of spend: PSI of spend"
    assert tags["who"] == "airflow:asset_triggered"


def test_an_approval_waits_there_or_names_the_command(team):
    airflow, settings, environment, output = team
    train = f"train_{ASKING}"
    with AirflowApi(settings) as api:
        (training,) = api.last_runs(train)
        assert task_states(api, train, training["dag_run_id"])["ask"] == "success"
        assert Registry(settings).production(ASKING) is None
        if "3.0" in str(airflow.python("import airflow; print(airflow.__version__)")):
            assert f"gyre promote {ASKING} 1 --replaces none --reason" in output
            assert api.last_runs(f"approve_{ASKING}") == []
            return
        assert f"approve_{ASKING} waits for your answer" in output
        dag = f"approve_{ASKING}"
        (question,) = api.last_runs(dag)
        path = f"/dags/{dag}/dagRuns/{question['dag_run_id']}/taskInstances/approval"
        details = api._get(f"{path}/-1/hitlDetails")
        assert "Put version 1 of asking_model into production" in details["subject"]
        body = {"chosen_options": ["Approve"], "params_input": {"comment": "good"}}
        api._checked(api._send("PATCH", f"{path}/-1/hitlDetails", json=body))
        wait_until("the answer", lambda: Registry(settings).production(ASKING) == "1")
    ledger = run(f".venv/bin/gyre ledger {ASKING}", CLONE, environment)
    assert f"airflow:{USER}" in ledger


def test_a_changed_schedule_fails_the_first_task_until_the_file_is_written_again(team):
    _, settings, environment, _ = team
    dag = f"monitor_{MODEL}"
    file = settings.home / "gyre.env"
    text = file.read_text()
    file.write_text(f"{text}GYRE_LINKS__CONSOLE=http://console.example\n")
    with AirflowApi(settings) as api:
        message = rf"task monitor: RuntimeError: {dag}: its file in Airflow is older .*links changed"
        with pytest.raises(StackError, match=message):
            api.follow(dag, api.trigger(dag, {}), print)
        wait_until("the alert", partial(open_alerts, settings, f"{dag}.monitor"))
        run(f"{PRINT_AGAIN}airflow dags reserialize", CLONE, environment)
        api.follow(dag, api.trigger(dag, {}), print)
        wait_until("its end", lambda: not open_alerts(settings, f"{dag}.monitor"))
    file.write_text(text)

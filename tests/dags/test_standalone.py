"""`gyre dags` prints the DAGs for an Airflow that has no Gyre; its tasks call `gyre step`."""

import ast
import json
import shutil
import subprocess
import sys

import pytest

from core.project import CLONE
from stack.environment import process_environment
from tests.conftest import new_settings
from tests.support.tools.dag_reader import read
from tests.support.tools.other_airflow import OtherAirflow
from tests.support.tools.preloaded import commands_folder

pytestmark = pytest.mark.journey

MODEL = "customer_churn_model"
MORE_LINES = {
    "approved": "[promotion]\napproval = true",
    "canary": '[rollout]\npolicy = "canary"',
}
RUN = {
    "dag": f"rollout_{MODEL}",
    "run_id": "by-hand",
    "actor": "ann",
    "start": "2026-11-28T00:00:00+00:00",
    "backfilled": None,
    "form": {"as_of": None},
}
ASK = """
import json, sys
from functools import partial
from dags.builder import run_by_command
from dags.steps import run_step
command, environment, requests = map(json.loads, sys.argv[1:])
answers = []
for request in requests:
    for run in (run_step, partial(run_by_command, command, environment)):
        try:
            answers.append(run(request))
        except Exception as exc:
            answers.append(str(exc))
print(json.dumps(answers))
"""
READ_ANYWHERE = """
import json, logging, sys
logging.disable()
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag
bag = DagBag(sys.argv[1])
dags = {}
for name, dag in bag.dags.items():
    dags[name] = {
        "tasks": {t.task_id: sorted(t.downstream_task_ids) for t in dag.tasks},
        "signals": {t.task_id: asset.name for t in dag.tasks for asset in t.outlets},
        "writers": [t.task_id for t in dag.tasks if t.pool == "tables"],
        "form": sorted(dag.params),
        "runs": [dag.start_date, dag.catchup, dag.max_active_runs],
        "alerts": all(t.on_failure_callback for t in dag.tasks),
        "retries": sorted({t.retries for t in dag.tasks}),
        "schedule": getattr(getattr(dag.timetable, "timetable", dag.timetable), "_expression", None)
                    or getattr(getattr(dag.timetable, "timetable", dag.timetable), "expression", None),
        "zone": str(getattr(getattr(dag.timetable, "timetable", dag.timetable), "_timezone", None)
                    or getattr(getattr(dag.timetable, "timetable", dag.timetable), "timezone", None)),
    }
modules = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"errors": bag.import_errors, "dags": dags, "modules": modules}))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with models that are approved and rolled out, and the environment of its commands."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("models", "feature_repo", "dags"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CLONE / name, folder / name, ignore=ignored)
    shipped = (folder / "models" / f"{MODEL}.toml").read_text()
    for name, lines in MORE_LINES.items():
        spec = shipped.replace(f'name = "{MODEL}"', f'name = "{name}"', 1)
        (folder / "models" / f"{name}.toml").write_text(f"{spec}\n{lines}\n")
    settings = new_settings(tmp_path_factory.mktemp("home"))
    environment = process_environment(settings) | {"GYRE_PROJECT": str(folder)}
    environment["GYRE_INGEST_SCHEDULE"] = "7-59/20 * * * *"
    return folder, environment


def printed(environment):
    command = [commands_folder() / "gyre", "dags"]
    return subprocess.check_output(command, env=environment, text=True)


@pytest.fixture(scope="module")
def file(project, tmp_path_factory):
    """The printed file, in a DAG folder of its own."""
    folder = tmp_path_factory.mktemp("other") / "dags"
    folder.mkdir()
    file = folder / "gyre_dags.py"
    file.write_text(printed(project[1]))
    return file


def test_the_printed_file_imports_airflow_and_the_standard_library_alone(file):
    roots = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            roots |= {name.name.partition(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(node.module.partition(".")[0])
    assert roots - sys.stdlib_module_names == {"airflow"}


def test_the_printed_dags_are_those_of_the_airflow_of_gyre(
    project, file, tmp_path, monkeypatch
):
    folder, environment = project
    monkeypatch.setenv("GYRE_PROJECT", str(folder))
    for name in ("GYRE_HOME", "GYRE_CONSOLE_PORT"):
        monkeypatch.setenv(name, environment[name])
    own = read(tmp_path / "own", folder)
    other = read(tmp_path / "other", file.parents[1])
    assert own["errors"] == other["errors"] == {}
    assert len(own["dags"]) == 3 * 3 + 4
    assert other["dags"] == own["dags"]


def ask(environment, *requests):
    """Return the answers to requests, each in a process of this environment and by `gyre step`."""
    programs = commands_folder()
    arguments = [str(programs / "gyre"), environment, requests]
    command = [programs / "python", "-c", ASK, *map(json.dumps, arguments)]
    output = subprocess.check_output(command, env=environment, cwd=CLONE, text=True)
    return json.loads(output.splitlines()[-1])


def test_a_step_by_the_command_answers_as_it_does_in_the_process_of_a_task(project):
    folder, environment = project
    requests = [
        {"step": "ingest:read_specs", "arguments": {"models": [MODEL]}, "run": RUN},
        {"step": "rollout:look", "arguments": {}, "run": RUN},
    ]
    result = {"result": 1}
    skipped = {"skipped": "no rollout is in progress"}
    assert ask(environment, *requests) == [result, result, skipped, skipped]
    spec = folder / "models" / "torn.toml"
    spec.write_text("seed =")
    own, by_command = ask(environment, requests[0])
    spec.unlink()
    assert own.startswith("torn.toml: ")
    assert by_command == own


def test_a_file_that_is_older_than_the_models_says_so_with_the_remedy(project, file):
    folder, environment = project
    (plans,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PLANS"
    )
    by_name = {plan["name"]: plan for plan in plans}
    request = {"step": "ingest:read_specs", "arguments": {"models": []}, "run": RUN}
    train = request | {"plan": by_name[f"train_{MODEL}"]}
    ingest = request | {"plan": by_name["ingest"]}
    assert ask(environment, train, ingest)[1::2] == [{"result": 0}, {"result": 0}]
    spec = folder / "models" / f"{MODEL}.toml"
    text = spec.read_text()
    spec.write_text(text.replace("@weekly", "@daily"))
    added = spec.with_name("added.toml")
    added.write_text(text.replace(f'name = "{MODEL}"', 'name = "added"', 1))
    _, of_train, _, of_ingest = ask(environment, train, ingest)
    spec.write_text(text)
    added.unlink()
    words = (
        "its file in Airflow is older than models/, gyre.env or this release of Gyre"
    )
    remedy = "write it again: gyre dags > FILE"
    assert of_train == f"train_{MODEL}: {words} (cron changed); {remedy}"
    assert of_ingest == f"ingest: {words} (tasks changed); {remedy}"


def test_airflow_3_0_reads_the_file_without_gyre_and_asks_nobody(
    project, file, tmp_path
):
    airflow = OtherAirflow(tmp_path, "3.0.6")
    bag = json.loads(airflow.python(READ_ANYWHERE, str(file)))
    own = json.loads(
        subprocess.check_output(
            [sys.executable, "-c", READ_ANYWHERE, str(file)],
            env=project[1] | {"AIRFLOW_HOME": str(tmp_path / "own")}, text=True,
        ).splitlines()[-1]
    )  # fmt: skip
    assert bag["errors"] == {}
    assert {"core", "dags", "feast", "mlflow"}.isdisjoint(bag["modules"])
    del own["dags"]["approve_approved"]
    assert bag["dags"] == own["dags"]
    assert list(bag["dags"]["train_approved"]["tasks"])[-1] == "ask"

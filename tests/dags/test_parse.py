"""The shipped DAG files, read as Airflow reads them, in a process of their own."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.spec import load_specs
from training.validate import LONGEST

PROJECT = Path(__file__).resolve().parents[2]
READ = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction
free = TimeRestriction(earliest=None, latest=None, catchup=False)
bag = DagBag(sys.argv[1])
found = {
    "errors": {name: str(error) for name, error in bag.import_errors.items()},
    "modules": sorted(sys.modules),
    "dags": {},
}
for name, dag in bag.dags.items():
    serialized = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    first = serialized.next_dagrun_info(last_automated_data_interval=None, restriction=free)
    asset = getattr(dag.timetable, "asset_condition", None)
    found["dags"][name] = {
        "tasks": {t.task_id: sorted(t.downstream_task_ids) for t in dag.tasks},
        "outlets": {t.task_id: [each.name for each in t.outlets] for t in dag.tasks},
        "pools": {t.task_id: t.pool for t in dag.tasks},
        "form": sorted(dag.params), "start_date": dag.start_date,
        "catchup": dag.catchup, "at_once": dag.max_active_runs,
        "first_run": first and first.run_after.isoformat(),
        "starts_by": asset and asset.name,
        "longest": sum(((t.retries + 1) * t.execution_timeout).total_seconds()
                       for t in dag.tasks if t.execution_timeout),
        "on_failure": bool(dag.on_failure_callback),
        "alerts": [t.task_id for t in dag.tasks for callback in t.on_failure_callback
                   if callable(callback)] == [t.task_id for t in dag.tasks],
        "ends_alerts": DagSerialization.to_dict(dag)["dag"].get("has_on_success_callback"),
    }
print(json.dumps(found))
"""
NOW = datetime.now(UTC)
MODEL = "customer_churn_model"
OWN_DAG = """
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("own"):
    EmptyOperator(task_id="work")
"""
KINDS = ("train", "monitor", "score")
HEAVY = (
    "pandas numpy pyarrow mlflow feast evidently sklearn training.validate monitoring"
)


def read(home, project):
    dags = str(project / "dags")
    env = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": dags,
        "PYTHONPATH": str(project),
    }
    done = subprocess.run(
        [sys.executable, "-c", READ, dags],
        cwd=project, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """The shipped files with further models, some broken, and a file that fails for one of them."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("dags", "models", "core", "stack"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / folder, project / folder, ignore=ignored)
    shipped = (project / "models" / f"{MODEL}.toml").read_text()
    population = shipped[shipped.index("[population]") : shipped.index("[snapshots]")]
    two_minutes_ago = f'"{NOW - timedelta(minutes=2):%M %H * * %w}"'
    estimators = "[[estimators]]"
    for name, before, after in (
        ("fortnightly", '"@weekly"', '"@fortnightly"'),
        ("torn", "seed = 7", "seed ="),
        ("unbuilt", "seed = 7", "seed = 8"),
        # Nobody to score.
        ("of_events", f"{population}[snapshots]", '[snapshots]\nrows = "label"'),
        ("due", '"@weekly"', two_minutes_ago),
        ("approved", estimators, f"[promotion]\napproval = true\n\n{estimators}"),
        ("canary", estimators, f'[rollout]\npolicy = "canary"\n\n{estimators}'),
    ):
        spec = shipped.replace(MODEL, name).replace(before, after, 1)
        (project / "models" / f"{name}.toml").write_text(spec)
    (project / "dags" / "own.py").write_text(OWN_DAG)
    score = project / "dags" / "score.py"
    line = "def score_dag(spec: ModelSpec) -> None:\n"
    text = score.read_text()
    assert line in text
    score.write_text(text.replace(line, f"{line}    1 / (spec.seed - 8)\n", 1))
    return read(tmp_path_factory.mktemp("airflow"), project)


def test_every_dag_file_parses_without_an_error_and_imports_no_heavy_package(bag):
    assert bag["errors"] == {}
    assert {*HEAVY.split()} & {*bag["modules"]} == set()


def test_a_broken_spec_or_dag_leaves_the_dags_of_all_other_models(bag):
    models = [*(spec.name for spec in load_specs()), "due", "canary", "approved"]
    expected = {f"{kind}_{name}" for name in models for kind in KINDS}
    for name in ("unbuilt", "of_events"):
        expected |= {f"train_{name}", f"monitor_{name}"}
    expected |= {"rollout_canary", "own", "ingest", "maintain"}
    assert set(bag["dags"]) == expected


def test_a_new_model_is_not_trained_for_a_schedule_time_in_the_past(bag):
    first = bag["dags"]["train_due"]["first_run"]
    assert datetime.fromisoformat(first) > NOW + timedelta(days=6)


def test_every_dag_alerts_on_failure_and_shipped_dags_run_one_at_a_time_without_catchup(
    bag,
):
    for name, dag in bag["dags"].items():
        assert dag["alerts"] is True
        assert dag["ends_alerts"] is True
        runs = (dag["start_date"], dag["catchup"], dag["at_once"])
        assert runs == (None, False, 1) or name == "own"


def test_training_goes_through_every_stage_in_order(bag):
    dag = bag["dags"][f"train_{MODEL}"]
    order = ["validate", "dataset", "train", "evaluate", "gate", "register", "promote"]
    following = [[task] for task in order[1:]] + [[]]
    assert dag["tasks"] == dict(zip(order, following, strict=True))
    assert dag["form"] == ["as_of", "force", "reason"]
    assert dag["on_failure"]
    assert 0 < dag["longest"] < LONGEST.total_seconds(), (
        "a training that takes longer has died"
    )


def test_an_asset_event_starts_the_next_dag_before_its_schedule(bag):
    dags = bag["dags"]
    train = dags[f"train_{MODEL}"]
    monitor = dags[f"monitor_{MODEL}"]
    assert train["starts_by"] == f"drift/{MODEL}"
    assert train["outlets"]["promote"] == [f"promoted/{MODEL}"]
    assert monitor["starts_by"] == f"promoted/{MODEL}"
    assert monitor["tasks"] == {"monitor": ["retrain"], "retrain": []}
    assert monitor["outlets"]["retrain"] == [f"drift/{MODEL}"]
    hour = datetime.fromisoformat(monitor["first_run"])
    assert hour - datetime.now(UTC) < timedelta(hours=1, minutes=1)

    approved = dags["train_approved"]["tasks"]
    assert (approved["register"], approved["approval"]) == (["approval"], ["promote"])
    assert dags["train_canary"]["outlets"]["promote"] == ["rollout/canary"]
    rollout = dags["rollout_canary"]
    assert rollout["starts_by"] == "rollout/canary"
    assert rollout["tasks"] == {"look": ["promoted"], "promoted": []}
    assert rollout["outlets"]["promoted"] == ["promoted/canary"]
    step = datetime.fromisoformat(rollout["first_run"])
    assert step - datetime.now(UTC) < timedelta(minutes=6)


def test_tasks_that_write_tables_run_one_at_a_time(bag):
    ingest = bag["dags"]["ingest"]
    score = bag["dags"][f"score_{MODEL}"]
    assert ingest["tasks"] == {"read_specs": [], "ingest_orders": []}
    assert ingest["outlets"]["ingest_orders"] == ["features"]
    assert ingest["pools"]["ingest_orders"] == "tables"
    assert (score["tasks"], score["outlets"]) == ({"score": []}, {"score": []})
    assert (score["pools"]["score"], score["form"]) == ("tables", ["as_of"])
    assert bag["dags"]["maintain"]["pools"] == {"maintain": "tables"}

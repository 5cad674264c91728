"""The shipped DAG files, read as Airflow reads them, in a process of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from core.spec import load_specs
from training.validate import LONGEST

PROJECT = Path(__file__).resolve().parents[2]
READ = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
found = {
    "errors": {name: str(error) for name, error in bag.import_errors.items()},
    "modules": sorted(sys.modules),
    "dags": {name: {
        "tasks": {t.task_id: sorted(t.downstream_task_ids) for t in dag.tasks},
        "outlets": {t.task_id: [asset.name for asset in t.outlets] for t in dag.tasks},
        "pools": {t.task_id: t.pool for t in dag.tasks},
        "params": sorted(dag.params), "start_date": str(dag.start_date),
        "catchup": dag.catchup, "at_once": dag.max_active_runs,
        "schedule": type(dag.timetable).__name__,
        "longest": sum(((t.retries + 1) * t.execution_timeout).total_seconds()
                       for t in dag.tasks if t.execution_timeout),
        "on_failure": bool(dag.on_failure_callback),
        "alerts": {t.task_id: bool(t.on_failure_callback) for t in dag.tasks},
        "description": dag.description, "doc": dag.doc_md, "owner": dag.owner,
        "links": dag.owner_links,
        "starts_by": sorted(
            asset.name
            for asset in getattr(getattr(dag.timetable, "asset_condition", None), "objects", [])
        ),
    } for name, dag in bag.dags.items()},
}
print(json.dumps(found))
"""
FIRST_RUNS = """
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction
free = TimeRestriction(earliest=None, latest=None, catchup=False)
for name, dag in bag.dags.items():
    if name.startswith("schedule_"):
        scheduled = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
        info = scheduled.next_dagrun_info(last_automated_data_interval=None, restriction=free)
        found["dags"][name]["first_run"] = info.run_after.isoformat()
print(json.dumps(found))
"""
NOW = datetime.now(UTC)
KINDS = ("train", "schedule", "monitor", "hourly", "score")
HEAVY = {
    "pandas",
    "numpy",
    "pyarrow",
    "mlflow",
    "feast",
    "evidently",
    "sklearn",
    "training",
    "monitoring",
}


def read(home, project, code):
    dags = str(project / "dags")
    env = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": dags,
        "PYTHONPATH": str(project),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, dags],
        cwd=project, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return read(tmp_path_factory.mktemp("airflow"), PROJECT, READ)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """The same with further models, some of them broken, and a file that fails for one of them."""
    project = tmp_path_factory.mktemp("more")
    for room in ("dags", "models", "core", "stack"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / room, project / room, ignore=ignored)
    shipped = (project / "models" / "customer_churn_model.toml").read_text()
    population = shipped[shipped.index("[population]") : shipped.index("[snapshots]")]
    for name, before, after in (
        ("fortnightly", '"@weekly"', '"@fortnightly"'),
        ("torn", "seed = 7", "seed ="),
        ("unbuilt", "seed = 7", "seed = 8"),
        (
            "of_events",
            f"{population}[snapshots]",
            '[snapshots]\nrows = "label"',
        ),  # nobody to score
        ("due", '"@weekly"', f'"{NOW - timedelta(minutes=2):%M %H * * %w}"'),
        ("canary", "[[estimators]]", '[rollout]\npolicy = "canary"\n\n[[estimators]]'),
    ):
        spec = shipped.replace("customer_churn_model", name).replace(before, after, 1)
        (project / "models" / f"{name}.toml").write_text(spec)
    score = project / "dags" / "score.py"
    fails = "def score_dag(spec: ModelSpec) -> None:\n    1 / (spec.seed - 8)\n"
    score.write_text(
        score.read_text().replace("def score_dag(spec: ModelSpec) -> None:\n", fails, 1)
    )
    return read(tmp_path_factory.mktemp("airflow"), project, READ + FIRST_RUNS)


def test_every_file_is_read_without_an_error_and_nothing_heavy_is_imported(bag):
    assert bag["errors"] == {}
    assert HEAVY & set(bag["modules"]) == set()
    models = [spec.name for spec in load_specs()]
    expected = {"ingest", "maintain"} | {
        f"{kind}_{name}" for name in models for kind in KINDS
    }
    assert set(bag["dags"]) == expected


def test_a_broken_spec_and_a_dag_that_cannot_be_built_cost_no_other_model_its_dags(
    bag, more
):
    assert more["errors"] == {}
    expected = {f"{kind}_{name}" for name in ("due", "canary") for kind in KINDS}
    expected |= {
        f"{kind}_{name}" for name in ("unbuilt", "of_events") for kind in KINDS[:-1]
    }
    expected |= {"rollout_canary", "steps_canary"}
    assert set(more["dags"]) == set(bag["dags"]) | expected


def test_a_schedule_that_was_due_before_a_model_came_does_not_train_it(more):
    first = more["dags"]["schedule_due"]["first_run"]
    assert datetime.fromisoformat(first) > NOW + timedelta(days=6)


def test_a_task_of_every_dag_tells_of_its_failure(bag):
    for dag in bag["dags"].values():
        assert set(dag["alerts"].values()) == {True}


def test_every_dag_says_what_it_does_whose_it_is_and_where_more_is(bag):
    for name, dag in bag["dags"].items():
        assert dag["description"]
        assert "<MODEL>" not in dag["description"] + (dag["doc"] or "")
        assert dag["owner"] == "gyre"
        if name.startswith(("train", "monitor", "score")):
            assert dag["links"]["gyre"].endswith("/status/customer_churn_model")


def test_training_goes_through_every_stage_in_order(bag):
    tasks = bag["dags"]["train_customer_churn_model"]["tasks"]
    order = ["validate", "dataset", "train", "evaluate", "gate", "register", "promote"]
    assert set(tasks) == {*order}
    for task, following in pairwise(order):
        assert following in tasks[task]
    assert tasks["gate"] == ["register"]
    assert tasks["promote"] == []


def test_training_starts_by_partitioned_events_or_by_hand_and_tells_of_a_promotion(bag):
    dag = bag["dags"]["train_customer_churn_model"]
    assert dag["schedule"] == "PartitionedAssetTimetable"
    assert dag["params"] == ["as_of", "reason"]
    assert dag["outlets"]["promote"] == ["promoted/customer_churn_model"]
    weekly = bag["dags"]["schedule_customer_churn_model"]
    assert weekly["outlets"] == {"emit": ["due/customer_churn_model"]}


def test_a_training_that_fails_says_so_and_one_that_goes_on_for_longest_has_died(bag):
    dag = bag["dags"]["train_customer_churn_model"]
    assert dag["on_failure"]
    assert 0 < dag["longest"] < LONGEST.total_seconds()


def test_monitoring_starts_hourly_after_a_promotion_or_by_hand(bag):
    dag = bag["dags"]["monitor_customer_churn_model"]
    assert dag["schedule"] == "PartitionedAssetTimetable"
    assert dag["starts_by"] == [
        "look/customer_churn_model",
        "promoted/customer_churn_model",
    ]
    assert (dag["params"], dag["at_once"]) == (["as_of", "reason"], 1)
    hourly = bag["dags"]["hourly_customer_churn_model"]
    assert hourly["outlets"] == {"emit": ["look/customer_churn_model"]}
    assert hourly["schedule"] == "CronTriggerTimetable"


def test_a_decision_to_retrain_ends_in_the_event_of_drift(bag):
    dag = bag["dags"]["monitor_customer_churn_model"]
    assert dag["tasks"] == {"monitor": ["retrain"], "retrain": []}
    assert dag["outlets"]["retrain"] == ["drift/customer_churn_model"]
    train = bag["dags"]["train_customer_churn_model"]
    assert train["starts_by"] == [
        "drift/customer_churn_model",
        "due/customer_churn_model",
    ]


def test_a_canary_is_looked_at_every_few_minutes_and_when_training_has_begun_one(more):
    assert HEAVY & set(more["modules"]) == set()
    dags = more["dags"]
    dag = dags["rollout_canary"]
    assert dag["tasks"] == {"look": ["promoted"], "promoted": []}
    assert (dag["schedule"], dag["at_once"]) == ("PartitionedAssetTimetable", 1)
    assert dag["starts_by"] == ["rollout/canary", "step/canary"]
    assert dags["steps_canary"]["outlets"] == {"emit": ["step/canary"]}
    assert dag["outlets"]["promoted"] == ["promoted/canary"]
    assert (dag["start_date"], dag["catchup"]) == ("None", False)
    assert dags["train_canary"]["outlets"]["promote"] == ["rollout/canary"]


def test_ingest_writes_alone_and_tells_of_new_features(bag):
    dag = bag["dags"]["ingest"]
    assert dag["tasks"] == {"read_specs": [], "ingest_orders": []}
    assert dag["outlets"]["ingest_orders"] == ["features"]
    assert dag["pools"]["ingest_orders"] == "tables"
    assert dag["at_once"] == 1


def test_no_dag_has_a_start_date_or_runs_for_the_past(bag):
    for dag in bag["dags"].values():
        assert dag["start_date"] == "None"
        assert dag["catchup"] is False


def test_scores_are_made_nightly_and_start_nothing(bag):
    dag = bag["dags"]["score_customer_churn_model"]
    assert dag["tasks"] == {"score": []}
    assert dag["outlets"]["score"] == []
    assert (dag["pools"]["score"], dag["at_once"]) == ("tables", 1)
    assert (dag["schedule"], dag["params"]) == (
        "CronTriggerTimetable",
        ["as_of", "reason"],
    )

"""The shipped DAG files, read as Airflow reads them, in a process of their own."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.spec import load_specs
from tests.support.tools.dag_reader import read
from training.runs import LONGEST_RUN

PROJECT = Path(__file__).resolve().parents[2]
NOW = datetime.now(UTC)
MODEL = "customer_churn_model"
OWN_DAG = """
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("own"):
    EmptyOperator(task_id="work")
"""
KINDS = ("train", "monitor", "score")
HEAVY = "pandas numpy pyarrow mlflow feast evidently sklearn training.runs monitoring"


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
    line = "def plan(spec: ModelSpec) -> DagPlan | None:\n"
    text = score.read_text()
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
    expected |= {"rollout_canary", "approve_approved", "own", "ingest", "maintain"}
    assert set(bag["dags"]) == expected


def hours_to_first_run(bag, name):
    first = datetime.fromisoformat(bag["dags"][name]["first_run"])
    return (first - datetime.now(UTC)) / timedelta(hours=1)


def test_a_dag_first_runs_at_the_next_time_of_its_schedule_and_never_at_one_in_the_past(
    bag,
):
    assert hours_to_first_run(bag, "train_due") > 6 * 24
    assert hours_to_first_run(bag, f"monitor_{MODEL}") <= 1
    assert hours_to_first_run(bag, "rollout_canary") <= 0.1
    ingest = datetime.fromisoformat(bag["dags"]["ingest"]["first_run"])
    assert ingest.minute in {7, 27, 47}


def test_every_dag_alerts_on_failure_and_shipped_dags_run_one_at_a_time_without_catchup(
    bag,
):
    for name, dag in bag["dags"].items():
        assert dag["alerts"] is True
        assert dag["ends_alerts"] is True
        assert dag["runs"] == [None, False, 1] or name in {"own", "approve_approved"}


def test_training_goes_through_every_stage_in_order(bag):
    dag = bag["dags"][f"train_{MODEL}"]
    order = ["validate", "dataset", "train", "evaluate", "gate", "register", "promote"]
    following = [[task] for task in order[1:]] + [[]]
    assert dag["tasks"] == dict(zip(order, following, strict=True))
    assert 0 < dag["longest"] < LONGEST_RUN.total_seconds(), (
        "a training that takes longer has died"
    )
    assert bag["dags"]["train_approved"]["tasks"]["register"] == ["ask"]
    assert bag["dags"]["approve_approved"]["tasks"]["approval"] == ["promote"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"train_{MODEL}", {"starts_by": f"drift/{MODEL}", "on_failure": True,
         "signals": {"promote": f"promoted/{MODEL}"}, "form": ["as_of", "force", "reason"]}),
        ("train_canary", {"signals": {"promote": "rollout/canary"}}),
        ("approve_approved", {"signals": {"promote": "promoted/approved"},
         "form": ["mlflow_run"]}),
        (f"monitor_{MODEL}", {"starts_by": f"promoted/{MODEL}",
         "tasks": {"monitor": ["retrain"], "retrain": []},
         "signals": {"retrain": f"drift/{MODEL}"}}),
        ("rollout_canary", {"starts_by": "rollout/canary",
         "tasks": {"look": ["promoted"], "promoted": []},
         "signals": {"promoted": "promoted/canary"}}),
        ("ingest", {"tasks": {"read_specs": [], "ingest_orders": []},
         "signals": {"ingest_orders": "features"}, "writers": ["ingest_orders"]}),
        (f"score_{MODEL}", {"tasks": {"score": []}, "signals": {}, "writers": ["score"],
         "form": ["as_of"]}),
        ("maintain", {"writers": ["maintain"]}),
    ],
)  # fmt: skip
def test_a_dag_starts_others_by_signals_and_writes_tables_in_a_pool_of_one(
    bag, name, expected
):
    assert bag["dags"][name].items() >= expected.items()

"""Keeping house in a home: what goes, what stays, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli.main import typer_app
from core.settings import PROJECT
from core.spec import load_spec
from mlflow_server.records import DecisionRow, Records
from mlflow_server.tracking import Tracking
from monitoring.collect import OUTCOMES, PREDICTIONS, outcomes, predictions
from monitoring.maintain import maintain
from stack.environment import process_environment
from tests.conftest import mlflow_server, new_settings
from tests.preloaded import commands_folder
from training.batch import PARTITION, SCORES, scores

NOW, DAY = datetime(2026, 11, 20, 12, tzinfo=UTC), timedelta(days=1)
SPEC = load_spec("customer_churn_model")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("kept"))
    with mlflow_server(settings):
        yield settings


def logged(settings, days):
    """A prediction and its outcome of each of the days ago."""
    for day in days:
        at = NOW - day * DAY
        row = dict.fromkeys(PREDICTIONS.names) | {
            "request_id": f"r{day}", "model": "m", "version": "1", "received": at, "as_of": at,
            "in_population": True, "features": "{}",
        }  # fmt: skip
        predictions(settings).insert(
            pa.Table.from_pylist([row], PREDICTIONS), "request_id"
        )
        told = {"request_id": f"r{day}", "actual": 1.0, "received": at}
        outcomes(settings).insert(pa.Table.from_pylist([told], OUTCOMES), "request_id")
        scored = dict.fromkeys(SCORES.names, "x") | {
            "day": f"{at:%Y-%m-%d}",
            "as_of": at,
        }
        said = {"probability": 0.5, "prediction": 1.0, "probabilities": None}
        batch = pa.Table.from_pylist([scored | said], SCORES)
        scores(settings).replace(batch, PARTITION)


def file(settings, name, age, text="x"):
    path = settings.home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ((NOW - age).timestamp(),) * 2)
    return path


def test_what_is_past_its_time_goes(home):
    logged(home, (0, 399, 401, 500))
    old = [
        file(home, "airflow/logs/dag_id=a/attempt=1.log", 31 * DAY),
        file(home, "serving/log/predictions-1-1.malformed", 401 * DAY),
        file(home, "data/scratch/killed/a.parquet", 2 * DAY),
    ]
    os.utime(old[-1].parent, ((NOW - 2 * DAY).timestamp(),) * 2)
    young = [
        file(home, "airflow/logs/dag_id=a/attempt=2.log", 29 * DAY),
        file(home, "data/scratch/running/b.parquet", 0 * DAY),
    ]
    gone_run = file(
        home, "airflow/logs/dag_id=b/run_id=1/attempt=1.log", 31 * DAY
    ).parent
    new_run = home.home / "airflow/logs/dag_id=b/run_id=2"
    new_run.mkdir()
    os.utime(gone_run, ((NOW - 31 * DAY).timestamp(),) * 2)
    os.utime(new_run, ((NOW - DAY).timestamp(),) * 2)
    records = Records(home)
    for age in (0, 500):
        records.keep(
            DecisionRow(
                "m", "1", NOW - age * DAY, "ok", "nothing", "", "", "", "{}", {}
            )
        )
    records.count_alert("m", "old", "w", NOW - 401 * DAY)
    records.count_alert("m", "young", "w", NOW - DAY)
    tracking, experiment = Tracking(home), f"{SPEC.experiment}_monitoring"
    run_id = tracking.start_or_find_run(experiment, "k", "k", {})
    report = file(home, "report.html", DAY, "<html/>")
    for age in (0, 89, 91, 200):
        tracking.log_artifact(
            run_id, report, f"reports/{NOW - age * DAY:%Y-%m-%dT%H%M%S}"
        )
    done = run(home)
    gone = {
        name: done[name]["rows"]
        for name in ("predictions", "outcomes", "scores", "alerts")
    }
    assert gone == {"predictions": 2, "outcomes": 2, "scores": 2, "alerts": 1}
    assert done["drift reports"]["files"] == 2
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)
    assert (gone_run.exists(), new_run.exists()) == (False, True)
    assert done["decisions"]["rows"] == 1
    requests = set(predictions(home).read()["request_id"].to_pylist())
    assert {"r0", "r399"} <= requests
    assert requests.isdisjoint({"r401", "r500"})
    left = tracking.artifacts(run_id, "reports")
    assert {path[8:18] for path in left} == {
        f"{NOW - a * DAY:%Y-%m-%d}" for a in (0, 89)
    }
    assert [row["cause"] for row in records.alerts("m")] == ["young"]
    records.close()
    assert all(part["rows"] == 0 for part in run(home).values())


def run(settings):
    env = {
        "GYRE_HOME": str(settings.home),
        "GYRE_MLFLOW_PORT": str(settings.mlflow_port),
    }
    command = ["maintain", "--json", "--as-of", NOW.isoformat()]
    done = CliRunner().invoke(typer_app, command, env=env)
    assert done.exit_code == 0, done.output
    return {part["what"]: part for part in json.loads(done.stdout)}


def test_without_mlflow_tables_are_freed_all_the_same(tmp_path):
    settings = new_settings(tmp_path)
    logged(settings, (500,))
    freed = {part.what: part for part in maintain(settings, NOW)}
    assert freed["predictions"].rows == 1
    assert "does not answer" in freed["drift reports"].problem


def test_a_part_that_cannot_be_done_says_why_and_the_others_are(home):
    logged(home, (600,))
    broken = home.data / "raw" / "broken" / "_delta_log"
    broken.mkdir(parents=True)
    (broken / f"{0:020}.json").write_text("{")
    freed = {part.what: part for part in maintain(home, NOW)}
    assert "table raw/broken: " in freed["raw/broken"].problem
    assert freed["predictions"].rows == 1


def test_while_a_spec_is_broken_predictions_stay_as_its_model_may_need_them(
    home, tmp_path
):
    logged(home, (500,))
    left = predictions(home).read().num_rows
    rooms = (
        "cli",
        "feature_repo",
        "mlflow_server",
        "models",
        "monitoring",
        "core",
        "stack",
        "training",
    )
    for room in rooms:
        shutil.copytree(PROJECT / room, tmp_path / room)
    (tmp_path / "models" / "torn.toml").write_text('name = "torn"\nseed =\n')
    command = (
        "from cli.main import app; app()",
        "maintain",
        "--as-of",
        NOW.isoformat(),
        "--json",
    )
    done = subprocess.run(
        [commands_folder() / "python", "-c", *command], cwd=tmp_path, capture_output=True,
        text=True, check=False, env=process_environment(home) | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    freed = {part["what"]: part for part in json.loads(done.stdout)}
    said = freed["predictions"]["problem"]
    assert "a spec cannot be read: torn.toml: not TOML" in said
    assert predictions(home).read().num_rows == left
    assert (freed["outcomes"]["problem"], freed["outcomes"]["rows"]) == (None, 1)


def test_a_prediction_stays_until_it_can_be_judged_whatever_is_asked_for(home):
    logged(home, (0, 100, 121, 123))  # labels take 92 days
    asked = home.model_copy(update={"keep_days": home.keep_days | {"predictions": 30}})
    (freed,) = (part for part in maintain(asked, NOW) if part.what == "predictions")
    assert "kept for 122 days, not 30" in freed.line()
    left = set(predictions(home).read()["request_id"].to_pylist())
    assert {"r0", "r100", "r121"} <= left
    assert "r123" not in left

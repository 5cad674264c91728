"""Maintenance of a home: what is deleted, what stays, and what is reported."""

import json
import os
import shutil
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from core.project import PROJECT
from core.spec import load_spec
from mlflow_server.alerts import Alerts
from mlflow_server.api.tracking import Tracking
from monitoring.decisions.store import store_checks, store_decision
from monitoring.log.collect import collect
from monitoring.log.tables import predictions
from operations.maintain import maintain
from stack.environment import process_environment
from tests.conftest import mlflow_server, new_settings
from tests.monitoring.conftest import tear
from tests.support.monitoring.log_lines import NOON, answer, feedback, write
from tests.support.monitoring.year import decision_row
from tests.support.stores.s3 import s3_server
from tests.support.tools.preloaded import commands_folder
from training.batch import PARTITION, SCORES, scores

DAY = timedelta(days=1)
SPEC = load_spec("customer_churn_model")


def store_rows(settings, ages):
    """Store a row of each age in days in every table of rows with an age."""
    for age in ages:
        moment = NOON - age * DAY
        write(settings, "predictions-1-1.jsonl", answer(f"r{age}", moment))
        write(settings, "feedback-1-1.jsonl", feedback(f"r{age}", 1.0, moment))
        collect(settings)
        score = dict.fromkeys(SCORES.names) | dict.fromkeys(PARTITION, f"{age}")
        score["as_of"] = moment
        scores(settings).replace(pa.Table.from_pylist([score], SCORES), PARTITION)
        row = decision_row(model="m", version="1", as_of=moment)
        store_decision(settings, row)
        store_checks(settings, "m", moment, [])


def kept_requests(settings):
    return set(predictions(settings).read()["request_id"].to_pylist())


def store_files(settings, ages):
    """Store a file of each name and age in days."""
    paths = []
    for name, age in ages.items():
        path = settings.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        moment = (NOON - age * DAY).timestamp()
        os.utime(path, (moment, moment))
        paths.append(path)
    return paths


def clean(settings, **environment):
    """Run the command; return its exit code and what it reports of each place."""
    ended = subprocess.run(
        [commands_folder() / "gyre", "maintain", "--json", "--as-of", NOON.isoformat()],
        capture_output=True,
        check=False,
        env=process_environment(settings) | environment,
    )
    assert ended.stdout, ended.stderr
    return ended.returncode, {part["what"]: part for part in json.loads(ended.stdout)}


@pytest.mark.journey
def test_rows_and_files_older_than_their_retention_are_deleted(settings):
    store_rows(settings, (0, 399, 401))
    old_files = store_files(
        settings,
        {
            "airflow/logs/dag_id=a/attempt=1.log": 31,
            "serving/log/predictions-1-1.malformed": 401,
            "data/scratch/killed/a.parquet": 2,
            "reports/data_docs/gone/index.html": 91,
            "cache/bucket/a.parquet": 8,
        },
    )
    young_files = store_files(
        settings,
        {
            "airflow/logs/dag_id=a/attempt=2.log": 29,
            "data/scratch/running/b.parquet": 0,
            "reports/data_docs/orders/index.html": 89,
        },
    )
    tracking = Tracking(settings)
    with closing(Alerts(settings)) as alerts, mlflow_server(settings):
        for age in (1, 401):
            alerts.note("m", f"{age} days ago", "w", NOON - age * DAY)
        run_id = tracking.start_or_find_run(
            f"{SPEC.experiment}_monitoring", "k", "k", {}
        )
        for age in (0, 89, 91):
            folder = f"reports/{NOON - age * DAY:%Y-%m-%dT%H%M%S}"
            tracking.log_artifact(run_id, str(young_files[0]), folder)
        code, cleanups = clean(settings)
        folders = [
            item.path[8:18] for item in tracking.list_artifacts(run_id, "reports")
        ]
        assert [row["cause"] for row in alerts.rows("m")] == ["1 days ago"]
        assert all(part.rows == 0 for part in maintain(settings, NOON))
    assert code == 0, cleanups
    for name in ("predictions", "outcomes", "scores", "decisions", "checks", "alerts"):
        assert cleanups[name]["rows"] == 1, name
    assert cleanups["drift reports"]["files"] == 1
    assert not any(path.exists() for path in old_files)
    assert all(path.exists() for path in young_files)
    assert kept_requests(settings) == {"r0", "r399"}
    assert folders == [f"{NOON - age * DAY:%Y-%m-%d}" for age in (89, 0)]


def test_a_part_that_fails_is_named_and_the_others_are_cleaned(settings, tmp_path):
    """MLflow does not answer, a table is torn, a broken spec hides the time until labels."""
    store_rows(settings, (600,))
    tear(settings.data / "raw" / "broken")
    for folder in ("models", "feature_repo"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    (tmp_path / "models" / "torn.toml").write_text("seed =")
    code, cleanups = clean(settings, GYRE_PROJECT=str(tmp_path))
    assert code == 1
    for name, problem in (
        ("drift reports", "does not answer"),
        ("raw/broken", "table raw/broken: "),
        ("predictions", "torn.toml: not TOML"),
    ):
        assert problem in cleanups[name]["problem"]
    assert kept_requests(settings) == {"r600"}
    for name in ("outcomes", "scores", "decisions"):
        assert cleanups[name]["rows"] == 1, name


def test_a_prediction_stays_until_its_label_is_known(settings):
    store_rows(settings, (0, 121, 123))  # labels take 92 days
    short = settings.model_copy(update={"keep_days": {"predictions": 30}})
    lines = [part.line() for part in maintain(short, NOON)]
    assert any("kept for 122 days, not 30" in line for line in lines)
    assert kept_requests(settings) == {"r0", "r121"}


def test_expired_files_on_s3_are_deleted_too(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch):
        settings = new_settings(tmp_path / "home", data_url="s3://gyre/team/data")
        names = {
            "Data Docs": "reports/data_docs/orders/index.html",
            "malformed lines of replicas": "inbox/replica/predictions-1.malformed",
            "rows that Spark left": "scratch/job/a.parquet",
        }
        for name in names.values():
            (settings.data / name).write_text("x")
        now = datetime.now(UTC)
        assert not any(part.files for part in maintain(settings, now))
        files = {part.what: part.files for part in maintain(settings, now + 401 * DAY)}
        for place, name in names.items():
            assert files[place] == 1
            assert not (settings.data / name).exists()

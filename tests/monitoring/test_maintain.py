"""Maintenance of a home: what is deleted, what stays, and what is reported."""

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import boto3
import pyarrow as pa
import pytest

from core.settings import PROJECT
from core.spec import load_spec
from mlflow_server.alerts import Alerts
from mlflow_server.tracking import Tracking
from monitoring.collect import collect, predictions
from monitoring.decision_log import store_checks, store_decision
from monitoring.maintain import maintain
from stack.environment import process_environment
from tests.conftest import mlflow_server, new_settings
from tests.console.year import decision_row
from tests.monitoring.log import NOON, answer, feedback, write
from tests.preloaded import commands_folder
from tests.s3 import BUCKET, s3_server
from training.batch import PARTITION, SCORES, scores

DAY = timedelta(days=1)
SPEC = load_spec("customer_churn_model")


@pytest.fixture
def home(settings):
    with mlflow_server(settings):
        yield settings


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


def store_file(settings, name, age):
    path = settings.home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    moment = (NOON - age * DAY).timestamp()
    os.utime(path, (moment, moment))
    return path


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


def test_rows_and_files_older_than_their_retention_are_deleted(home):
    store_rows(home, (0, 399, 401))
    old_files = [
        store_file(home, "airflow/logs/dag_id=a/attempt=1.log", 31),
        store_file(home, "serving/log/predictions-1-1.malformed", 401),
        store_file(home, "data/scratch/killed/a.parquet", 2),
        store_file(home, "reports/data_docs/gone/index.html", 91),
        store_file(home, "cache/bucket/a.parquet", 8),
    ]
    young_files = [
        store_file(home, "airflow/logs/dag_id=a/attempt=2.log", 29),
        store_file(home, "data/scratch/running/b.parquet", 0),
        store_file(home, "reports/data_docs/orders/index.html", 89),
    ]
    alerts = Alerts(home)
    for age in (1, 401):
        alerts.note("m", f"{age} days ago", "w", NOON - age * DAY)
    tracking = Tracking(home)
    run_id = tracking.start_or_find_run(f"{SPEC.experiment}_monitoring", "k", "k", {})
    for age in (0, 89, 91):
        folder = f"reports/{NOON - age * DAY:%Y-%m-%dT%H%M%S}"
        tracking.log_artifact(run_id, str(young_files[0]), folder)
    code, cleanups = clean(home)
    assert code == 0, cleanups
    for name in ("predictions", "outcomes", "scores", "decisions", "checks", "alerts"):
        assert cleanups[name]["rows"] == 1, name
    assert cleanups["drift reports"]["files"] == 1
    assert not any(path.exists() for path in old_files)
    assert all(path.exists() for path in young_files)
    assert kept_requests(home) == {"r0", "r399"}
    folders = {item.path[8:18] for item in tracking.list_artifacts(run_id, "reports")}
    assert folders == {f"{NOON - age * DAY:%Y-%m-%d}" for age in (0, 89)}
    assert [row["cause"] for row in alerts.rows("m")] == ["1 days ago"]
    alerts.close()
    assert all(part.rows == 0 for part in maintain(home, NOON))


def test_a_part_that_fails_is_named_and_the_others_are_cleaned(settings):
    """MLflow does not answer, and a table is torn."""
    store_rows(settings, (600,))
    torn = settings.data / "raw" / "broken" / "_delta_log"
    torn.mkdir(parents=True)
    (torn / f"{0:020}.json").write_text("{")
    cleanups = {part.what: part for part in maintain(settings, NOON)}
    assert "does not answer" in cleanups["drift reports"].problem
    assert "table raw/broken: " in cleanups["raw/broken"].problem
    for name in ("predictions", "outcomes", "scores", "decisions"):
        assert cleanups[name].rows == 1, name


def test_predictions_stay_while_a_broken_spec_hides_the_time_until_labels(
    settings, tmp_path
):
    store_rows(settings, (500,))
    for folder in ("models", "feature_repo"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    (tmp_path / "models" / f"{SPEC.name}.toml").write_text("seed =")
    code, cleanups = clean(settings, GYRE_PROJECT=str(tmp_path))
    assert code == 1
    assert f"{SPEC.name}.toml: not TOML" in cleanups["predictions"]["problem"]
    assert kept_requests(settings) == {"r500"}
    assert cleanups["outcomes"]["rows"] == 1


def test_a_prediction_stays_until_its_label_is_known(settings):
    store_rows(settings, (0, 121, 123))  # labels take 92 days
    short = settings.model_copy(update={"keep_days": {"predictions": 30}})
    lines = [part.line() for part in maintain(short, NOON)]
    assert any("kept for 122 days, not 30" in line for line in lines)
    assert kept_requests(settings) == {"r0", "r121"}


def test_expired_files_on_s3_are_deleted_too(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch):
        settings = new_settings(tmp_path / "home", data_url=f"s3://{BUCKET}/team/data")
        client = boto3.client("s3")
        names = (
            "reports/data_docs/orders/index.html",
            "inbox/replica/predictions-1.malformed",
            "scratch/job/a.parquet",
        )
        for name in names:
            client.put_object(Bucket=BUCKET, Key=f"team/data/{name}", Body=b"x")
        now = datetime.now(UTC)
        assert not any(part.files for part in maintain(settings, now))
        files = {part.what: part.files for part in maintain(settings, now + 401 * DAY)}
        for place in (
            "Data Docs",
            "malformed lines of replicas",
            "rows that Spark left",
        ):
            assert files[place] == 1, place
        assert "Contents" not in client.list_objects_v2(Bucket=BUCKET)

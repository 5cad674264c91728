"""Keeping house in a home: what goes, what stays, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli.main import typer_app
from mlflow_server.connection import client
from mlflow_server.records import DecisionRow, Records
from mlflow_server.tracking import Tracking
from monitoring.collect import (
    OUTCOMES,
    PREDICTIONS,
    REMEMBERED,
    closed_feedback,
    collect,
    outcomes,
    predictions,
)
from monitoring.maintain import maintain, too_many
from stack.environment import process_environment
from stack.errors import DataError, RegistryError
from stack.settings import PROJECT
from stack.spec import load_spec
from stack.storage import Table
from tests.conftest import mlflow_server, new_settings
from training.batch import PARTITION, SCORES, scores
from training.lineage import TABLE_TAG

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
        predictions(settings).insert(pa.Table.from_pylist([row], PREDICTIONS), "request_id")
        told = {"request_id": f"r{day}", "actual": 1.0, "received": at}
        outcomes(settings).insert(pa.Table.from_pylist([told], OUTCOMES), "request_id")
        scored = dict.fromkeys(SCORES.names, "x") | {"day": f"{at:%Y-%m-%d}", "as_of": at}
        batch = pa.Table.from_pylist([scored | {"probability": 0.5, "prediction": 1.0}], SCORES)
        scores(settings).replace(batch, PARTITION)


def file(settings, name, age, text="x"):
    path = settings.home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ((NOW - age).timestamp(),) * 2)
    return path


def test_what_is_past_its_time_goes_and_a_dry_run_only_says_so(home, tmp_path):
    logged(home, (0, 399, 401, 500))
    old = [
        file(home, "airflow/logs/dag_id=a/attempt=1.log", 31 * DAY),
        file(home, "reports/ingest/orders-1.json", 401 * DAY),
        file(home, "serving/log/predictions-1-1.malformed", 401 * DAY),
    ]
    young = [file(home, "airflow/logs/dag_id=a/attempt=2.log", 29 * DAY)]
    gone_run = file(home, "airflow/logs/dag_id=b/run_id=1/attempt=1.log", 31 * DAY).parent
    new_run = home.home / "airflow/logs/dag_id=b/run_id=2"
    new_run.mkdir()
    os.utime(gone_run, ((NOW - 31 * DAY).timestamp(),) * 2)
    os.utime(new_run, ((NOW - DAY).timestamp(),) * 2)
    records = Records(home)
    for age in (0, 500):
        records.keep(DecisionRow("m", "1", NOW - age * DAY, "ok", "nothing", "", "", "", "{}", {}))
    records.count_alert("m", "old", "w", NOW - 401 * DAY)
    records.count_alert("m", "young", "w", NOW - DAY)
    tracking, experiment = Tracking(home), f"{SPEC.experiment}_monitoring"
    run_id = tracking.start_or_find_run(experiment, "k", "k", {})
    report = file(home, "report.html", DAY, "<html/>")
    for age in (0, 14, 15, 16, 17, 30):
        tracking.log_artifact(run_id, report, f"reports/{NOW - age * DAY:%Y-%m-%dT%H%M%S}")
    # 20 November is a Friday: of the 5th, 4th and 3rd, one week, the first stays.
    said = run(home, "--dry-run")
    assert said["predictions"]["rows"] == 2
    assert said["drift reports"]["files"] == 2
    assert all(path.exists() for path in old)
    done = run(home)
    gone = {name: done[name]["rows"] for name in ("predictions", "outcomes", "scores", "alerts")}
    assert gone == {"predictions": 2, "outcomes": 2, "scores": 2, "alerts": 1}
    assert done["drift reports"]["bytes"] == 2 * len("<html/>")
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)
    assert (gone_run.exists(), new_run.exists()) == (False, True)
    assert done["decisions"]["rows"] == 0, "one of the newest 1,000 of its verdict"
    assert set(predictions(home).read()["request_id"].to_pylist()) == {"r0", "r399"}
    left = tracking.artifacts(run_id, "reports")
    assert {path[8:18] for path in left} == {f"{NOW - a * DAY:%Y-%m-%d}" for a in (0, 14, 17, 30)}
    assert [row["cause"] for row in records.alerts("m")] == ["young"]
    records.close()
    assert all(part["rows"] == 0 for part in run(home).values())


def run(settings, *options):
    env = {"GYRE_HOME": str(settings.home), "GYRE_MLFLOW_PORT": str(settings.mlflow_port)}
    command = ["maintain", "--json", "--as-of", NOW.isoformat(), *options]
    done = CliRunner().invoke(typer_app, command, env=env)
    assert done.exit_code == 0, done.output
    return {part["what"]: part for part in json.loads(done.stdout)}


def test_what_a_version_or_a_training_run_names_is_there_as_it_was_and_no_other(home):
    raw = Table(home.data / "raw" / "orders", OUTCOMES)
    for n in range(30):
        rows = [{"request_id": f"r{k}", "actual": float(n), "received": NOW} for k in (n, 100)]
        raw.merge(pa.Table.from_pylist(rows, OUTCOMES), ["request_id"], ["actual"])
    named = {version: raw.read(version) for version in (4, 9)}
    tags = {f"{TABLE_TAG}orders": "4", f"{TABLE_TAG}orders.id": raw.identity}
    run_id = Tracking(home).start_or_find_run(SPEC.experiment, "k", "k", tags)
    api = client(home)
    api.create_registered_model("m")
    tags = {f"{TABLE_TAG}orders": "9", f"{TABLE_TAG}orders.sha256": "1" * 64}
    api.create_model_version("m", source=f"runs:/{run_id}/model", run_id=run_id, tags=tags)
    (freed,) = (part for part in maintain(home, NOW + 30 * DAY) if part.what == "raw/orders")
    assert freed.files > 30
    for version, then in named.items():
        assert raw.read(version).equals(then)
    with pytest.raises(DataError, match="version 5 cannot be read"):
        raw.read(5)
    assert raw.read().num_rows == 31


def test_without_mlflow_nothing_goes_as_nobody_knows_what_lineage_names(tmp_path):
    settings = new_settings(tmp_path)
    logged(settings, (500,))
    with pytest.raises(RegistryError, match="does not answer"):
        maintain(settings, NOW)
    assert predictions(settings).read().num_rows == 1


def test_a_part_that_cannot_be_done_says_why_and_the_others_are(home):
    logged(home, (600,))
    broken = home.data / "raw" / "broken" / "_delta_log"
    broken.mkdir(parents=True)
    (broken / f"{0:020}.json").write_text("{")
    freed = {part.what: part for part in maintain(home, NOW)}
    assert "raw/broken" in freed["raw/broken"].problem
    assert freed["predictions"].rows == 1


def test_while_a_spec_is_broken_what_its_model_may_need_stays(home, tmp_path):
    logged(home, (500,))
    raw = Table(home.data / "raw" / "orders", PREDICTIONS)
    raw.insert(predictions(home).read(), "request_id")
    versions, left = raw.version, predictions(home).read().num_rows
    rooms = ("cli", "feature_repo", "mlflow_server", "models", "monitoring", "stack", "training")
    for room in rooms:
        shutil.copytree(PROJECT / room, tmp_path / room)
    (tmp_path / "models" / "torn.toml").write_text('name = "torn"\nseed =\n')
    command = "from cli.main import app; app()", "maintain", "--as-of", NOW.isoformat(), "--json"
    done = subprocess.run(
        [sys.executable, "-c", *command], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=process_environment(home) | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    freed = {part["what"]: part for part in json.loads(done.stdout)}
    for table in ("predictions", "raw/orders"):
        assert "a spec cannot be read: torn.toml: not TOML" in freed[table]["problem"]
    assert (raw.version, predictions(home).read().num_rows) == (versions, left)
    assert (freed["outcomes"]["problem"], freed["outcomes"]["rows"]) == (None, 1)


def test_the_first_report_of_each_week_stays_and_all_of_the_last_14_days():
    reports = [NOW - n * DAY for n in range(60)]
    gone = too_many(reports, NOW)
    left = sorted(set(reports) - set(gone))
    assert [at for at in left if at >= NOW - 14 * DAY] == sorted(reports[:15])
    old = [at for at in left if at < NOW - 14 * DAY]
    weeks = [at.isocalendar()[:2] for at in old]
    assert len(weeks) == len(set(weeks)) >= 6
    assert too_many(left, NOW) == []


def told(settings, name, numbers, at=NOW):
    folder = settings.home / "serving" / "log"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"request_id": f"r{n}", "actual": 1.0, "received": at.isoformat()} for n in numbers]
    path = folder / f"feedback-1-{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_feedback_that_serving_does_not_remember_goes_once_it_is_stored(tmp_path):
    settings = new_settings(tmp_path)
    first, second = told(settings, 1, range(10)), told(settings, 2, range(10, 20))
    newest = told(settings, 10, range(100, 100 + REMEMBERED))  # begun later: 10 is after 2
    assert closed_feedback(settings) == []  # not stored yet
    collect(settings)
    assert closed_feedback(settings) == [second, first]
    with second.open("a") as more:
        more.write("{torn")
    assert closed_feedback(settings) == [first]  # what it says is on file alone
    newest.unlink()
    assert closed_feedback(settings) == []


def test_feedback_past_its_retention_goes_with_its_file_and_does_not_come_back(home):
    """Ids of its own: the home is shared."""
    at = NOW - 390 * DAY
    old = told(home, 1, range(10**6, 10**6 + 10), at)
    newest = told(home, 10, range(2 * 10**6, 2 * 10**6 + REMEMBERED))

    def kept():
        return {f"r{10**6 + n}" for n in range(10)} & set(
            outcomes(home).read()["request_id"].to_pylist()
        )

    try:
        collect(home)
        assert len(kept()) == 10
        kept_on_file = told(home, 11, [3 * 10**6], NOW - 401 * DAY)  # begun last: serving reads it
        freed = {part.what: part for part in maintain(home, NOW + 20 * DAY)}
        assert (freed["feedback files"].files, freed["outcomes"].rows >= 10) == (1, True)
        assert not old.exists()
        assert kept_on_file.exists()
        collect(home)
        assert "r3000000" not in outcomes(home).read()["request_id"].to_pylist()
        assert kept() == set()
    finally:
        for path in newest.parent.glob("feedback-*"):
            path.unlink()


def test_a_file_whose_outcomes_were_deleted_already_goes(tmp_path):
    settings = new_settings(tmp_path)
    old = told(settings, 1, range(10), NOW - 401 * DAY)
    told(settings, 10, range(100, 100 + REMEMBERED))
    collect(settings)
    assert closed_feedback(settings) == []
    assert closed_feedback(settings, NOW - 400 * DAY) == [old]


def test_a_prediction_stays_until_it_can_be_judged_whatever_is_asked_for(home):
    logged(home, (0, 100, 121, 123))  # labels take 92 days
    asked = home.model_copy(update={"keep_days": home.keep_days | {"predictions": 30}})
    (freed,) = (part for part in maintain(asked, NOW) if part.what == "predictions")
    assert "kept for 122 days, not 30" in freed.line()
    left = set(predictions(home).read()["request_id"].to_pylist())
    assert {"r0", "r100", "r121"} <= left
    assert "r123" not in left

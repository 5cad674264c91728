"""Runs, and what belongs to them, on the real server."""

import hashlib
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from core.errors import RegistryError
from mlflow_server.tracking import Tracking


@pytest.fixture
def tracking(settings):
    return Tracking(settings)


@pytest.fixture
def experiment():
    return f"experiment {uuid.uuid4().hex[:8]}"


def test_all_runs_of_an_experiment_are_read(tracking, experiment):
    first = tracking.start_or_find_run(experiment, "k", "first", {})
    experiment_id = tracking.get_experiment_by_name(experiment).experiment_id
    for _ in range(100):
        tracking.create_run(experiment_id)
    tracking.delete_run(first)
    assert len(tracking.runs(experiment)) == 100
    assert len(tracking.runs(experiment, deleted=True)) == 101


def test_parameters_metrics_and_files_are_read_as_they_were_logged(
    tracking, experiment, tmp_path
):
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    tracking.log(run_id, params={f"p{n}": n for n in range(150)})
    tracking.log(run_id, params={"p1": 1})
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    metrics = {"test/f1": 0.75, "test/auc": 0.5}
    tracking.log(run_id, metrics=metrics, tags={"git": "abc"}, at=moment, step=7)
    run = tracking.run(run_id)
    assert len(run.params) == 150
    assert (run.metrics, run.tags["git"]) == (metrics, "abc")
    (point,) = tracking.get_metric_history(run_id, "test/f1")
    assert (point.timestamp / 1000, point.step) == (moment.timestamp(), 7)

    file = tmp_path / "train.parquet"
    rows = pd.DataFrame({"spend": [0.5, None] * 1_000, "churned": [0, 1] * 1_000})
    rows.to_parquet(file)
    digest = hashlib.sha256(b"content").hexdigest()
    tracking.log_dataset(run_id, file, name="orders", digest=digest, target="churned")
    (source,) = tracking.get_run(run_id).inputs.dataset_inputs
    assert (source.dataset.name, source.dataset.digest) == ("orders", digest[:36])
    assert source.tags[0].value == "training"
    assert json.loads(source.dataset.profile) == {
        "num_rows": 2_000,
        "num_elements": 4_000,
    }
    back = tracking.download_artifacts(run_id, "data/train.parquet", tmp_path)
    assert Path(back).read_bytes() == file.read_bytes()
    tracking.delete_artifacts(run_id, "data/train.parquet")
    assert tracking.list_artifacts(run_id, "data") == []


def test_an_error_of_mlflow_is_reported_in_one_line(tracking, experiment, tmp_path):
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    tracking.log(run_id, params={"depth": 8})
    with pytest.raises(RegistryError, match=r"log batch: .*depth"):
        tracking.log(run_id, params={"depth": 9})
    with pytest.raises(RegistryError, match=r"download artifacts: .*nothing\.json"):
        tracking.download_artifacts(run_id, "nothing.json", tmp_path)

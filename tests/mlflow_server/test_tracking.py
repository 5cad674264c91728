"""Runs, and what belongs to them, on the real server."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from core.errors import RegistryError
from mlflow_server.connection import client
from mlflow_server.pages import Pages
from mlflow_server.tracking import Tracking
from training.register import DESCRIBED

if TYPE_CHECKING:
    from pathlib import Path

    from core.settings import Settings


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


@pytest.fixture
def experiment() -> str:
    return f"experiment {uuid.uuid4().hex[:8]}"


def test_a_key_has_one_run(tracking: Tracking, experiment: str) -> None:
    assert tracking.runs(experiment) == []
    run_id = tracking.start_or_find_run(
        experiment, "k", "monday", {"gyre.reason": "drift"}
    )
    assert tracking.start_or_find_run(experiment, "k", "monday", {}) == run_id
    other = tracking.start_or_find_run(
        experiment, "manual__2026-11-20T09:17:47.5+00:00", "tuesday", {}
    )
    assert [run.run_id for run in tracking.runs(experiment)] == [other, run_id]
    run = tracking.run(run_id)
    assert (run.key, run.status, run.tags["gyre.reason"]) == ("k", "RUNNING", "drift")


def test_a_failed_run_goes_on_and_a_finished_one_stays(
    tracking: Tracking, experiment: str
) -> None:
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    tracking.finish(run_id, "FAILED")
    assert tracking.run(run_id).status == "FAILED"
    tracking.start_or_find_run(experiment, "k", "run", {})
    assert tracking.run(run_id).status == "RUNNING"
    tracking.finish(run_id, "FINISHED")
    tracking.start_or_find_run(experiment, "k", "run", {})
    assert tracking.run(run_id).status == "FINISHED"


def test_an_experiment_has_a_description_and_columns_that_compare_its_runs(
    tracking: Tracking, experiment: str, settings: Settings
) -> None:
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    tracking.end(run_id, "refused: auc 0.5")
    api, pages = client(settings), Pages(settings)
    found = api.get_experiment_by_name(experiment)
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "best constant" in found.tags["mlflow.note.content"]
    place = f"/#/experiments/{found.experiment_id}/runs?viewStateShareKey=gyre&"
    assert place in pages.experiment(experiment)
    view = json.loads(found.tags["mlflow.sharedViewState.gyre"])
    columns = view["selectedColumns"]
    assert view["columnOrder"][-len(columns) :] == columns
    assert columns[:2] == ["metrics.`log_loss`", "metrics.`trivial_log_loss`"]
    named = {f"metrics.`{of}{each}`" for of in ("", "champion_") for each in DESCRIBED}
    assert named <= set(columns)
    assert pages.run(run_id).endswith(
        f"/#/experiments/{found.experiment_id}/runs/{run_id}"
    )
    run = tracking.run(run_id)
    assert run.tags["outcome"] == run.tags["mlflow.note.content"] == "refused: auc 0.5"


def test_what_is_logged_comes_back(
    tracking: Tracking, experiment: str, settings: Settings, tmp_path: Path
) -> None:
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    tracking.log(run_id, params={f"p{n}": n for n in range(150)})
    tracking.log(run_id, params={"p1": 1})
    tracking.log(run_id, metrics={"f1": 0.75, "auc": 0.5}, tags={"git": "abc"})
    run = tracking.run(run_id)
    assert len(run.params) == 150
    assert (run.metrics, run.tags["git"]) == ({"f1": 0.75, "auc": 0.5}, "abc")

    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "roc.png").write_bytes(bytes(1001))
    tracking.log_artifacts(run_id, tmp_path / "plots", "plots")
    tracking.log_json(run_id, {"a": [1]}, "reports/gate.json")
    (tmp_path / "note.txt").write_text("hello")
    tracking.log_artifact(run_id, tmp_path / "note.txt", "notes")
    folder = tmp_path / "back"
    assert tracking.download(run_id, "notes/note.txt", folder).read_text() == "hello"
    assert (
        tracking.download(run_id, "plots", folder).joinpath("roc.png").stat().st_size
        > 1000
    )
    assert tracking.download(run_id, "reports/gate.json", folder).is_file()
    with pytest.raises(RegistryError, match=r"artifact nothing\.json of run"):
        tracking.download(run_id, "nothing.json", folder)


def test_a_dataset_is_the_file_and_the_runs_input(
    tracking: Tracking, experiment: str, settings: Settings, tmp_path: Path
) -> None:
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    file = tmp_path / "train.parquet"
    pd.DataFrame(
        {"orders": [1, 2], "spend": [0.5, None], "churned": [0, 1]}
    ).to_parquet(file)
    digest = hashlib.sha256(b"content").hexdigest()
    tracking.log_dataset(run_id, file, name="orders", digest=digest, target="churned")
    (found,) = client(settings).get_run(run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("orders", digest[:36])
    assert found.tags[0].value == "training"
    back = tracking.download(run_id, "data/train.parquet", tmp_path / "back")
    assert back.read_bytes() == file.read_bytes()


def test_a_parameter_keeps_its_value(tracking: Tracking, experiment: str) -> None:
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    tracking.log(run_id, params={"depth": 8})
    with pytest.raises(RegistryError, match=r"values of run .*depth"):
        tracking.log(run_id, params={"depth": 9})

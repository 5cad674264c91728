"""Trainings that are killed anywhere and tried again."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pytest

from core.spec import load_spec
from feature_repo.source import pull
from mlflow_server.ledger import Ledger
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from tests.conftest import AS_OF, new_settings
from tests.faults.training_processes import training_processes
from tests.mlflow_server.conftest import client, stages
from tests.training.conftest import ORDERS, installation

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow import MlflowClient

    from core.settings import Settings

SHIPPED = load_spec("customer_churn_model")
FEW = {"n_estimators": 5, "max_depth": 4}
SMALL = {"name": "small", "type": "random_forest", "parameters": FEW}
OWN = {"name": "killed_model", "experiment": "killed", "estimators": [SMALL]}
SPEC = SHIPPED.model_validate(SHIPPED.model_dump() | OWN)
STAGES = ("open_run", "dataset", "train", "evaluate", "gate", "register", "promote")
KEY = "killed"
MANY_KILLS = {
    "open_run": (0, -1), "dataset": (2, -1), "train": (1, -1), "evaluate": (0, 2, -1),
    "register": (0, 1, 7, -4, -3, -2),
}  # fmt: skip
"""Where a stage has many effects of a kind, such as files: which ones are enough."""
FEW_KILLS = dict.fromkeys(STAGES, ()) | {"register": (0, -2), "promote": (-1,)}
"""Where most is at stake."""


@pytest.fixture
def training(rig, tmp_path):
    """Start a stage in an installation of few customers that shares the MLflow of the others."""
    home = tmp_path / "home"
    home.mkdir()
    rows = pull(new_settings(home / "source"), ORDERS, AS_OF).read_all()
    settings = installation(home, rows.filter(pc.less(rows["customer_id"], 1000)))
    settings = settings.model_copy(update={"mlflow_port": rig.settings.mlflow_port})
    defaults = {
        "settings": settings.model_dump(mode="json"),
        "spec": SPEC.model_dump(mode="json"),
        "as_of": AS_OF.isoformat(),
        "key": KEY,
        "run_id": None,
        "version": None,
        "dies": None,
    }
    with training_processes() as run_job:
        yield settings, lambda job: run_job(defaults | job)


def kept(rig, settings):
    """Return where MLflow and the ledger keep the training; both are made."""
    Ledger(settings).close()
    experiment = client(settings).create_experiment(SPEC.experiment)
    mlflow = rig.settings.home / "mlflow"
    artifacts = mlflow / "artifacts" / experiment
    artifacts.mkdir(parents=True, exist_ok=True)
    return [mlflow / "mlflow.db", settings.home / "ledger.db", artifacts]


def copies_in(folder: Path, places: list[Path]) -> list[Path]:
    folder.mkdir()
    return [folder / place.name for place in places]


def copy(sources: list[Path], targets: list[Path]) -> None:
    """Make the targets the same as the sources; databases while they are in use."""
    for source, target in zip(sources, targets, strict=True):
        if source.suffix != ".db":
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            continue
        with (
            closing(sqlite3.connect(source)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)


def state(settings: Settings) -> dict[str, Any]:
    """Return everything of the training that somebody can see, but clock times."""
    api = client(settings)
    (run,) = Tracking(settings).runs(SPEC.experiment)
    mlflow_run = api.get_run(run.run_id)
    models = api.search_logged_models(
        [mlflow_run.info.experiment_id], f"source_run_id = '{run.run_id}'"
    )
    versions = Registry(settings).versions(SPEC.name)
    with closing(Ledger(settings)) as ledger:
        rows = ledger.rows(SPEC.name)
    inputs = mlflow_run.inputs.dataset_inputs
    return {
        "status": run.status,
        "params": run.params,
        "metrics": run.metrics,
        "tags": run.tags,
        "files": files_of(api, run.run_id),
        "datasets": [entry.dataset.digest for entry in inputs],
        "models": [(model.status, model.tags) for model in models],
        "outputs": len(mlflow_run.outputs.model_outputs),
        "versions": [(v.version, v.run_id, v.tags) for v in versions],
        "stages": stages(settings, SPEC.name),
        "aliases": Registry(settings).aliases(SPEC.name),
        "ledger": [
            row.as_json() | {"time": "", "applied_at": bool(row.applied_at)}
            for row in rows
        ],
    }


def files_of(api: MlflowClient, run_id: str) -> list[str]:
    files = []
    folders = [""]
    while folders:
        items = api.list_artifacts(run_id, folders.pop())
        folders += [item.path for item in items if item.is_dir]
        files += [item.path for item in items if not item.is_dir]
    return sorted(files)


@pytest.mark.parametrize(
    "kills",
    [FEW_KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.nightly)],
    ids=["few", "many"],
)
def test_a_stage_killed_after_any_effect_and_repeated_gives_the_same_result(
    rig, training, tmp_path, kills
):
    """Each stage begins where the undisturbed ones before it ended, so the whole chain holds."""
    settings, start = training
    job: dict[str, Any] = {}
    places = kept(rig, settings)
    before = copies_in(tmp_path / "before", places)
    after = copies_in(tmp_path / "after", places)
    for stage in STAGES:
        job["stage"] = stage
        copy(places, before)
        value, effect_count = start(job)
        undisturbed = state(settings)
        copy(places, after)
        for position in kills.get(stage, range(effect_count)):
            effect = range(1, effect_count + 1)[position]
            copy(before, places)
            assert start(job | {"dies": effect}) is None
            again, _ = start(job)
            assert again == value or stage == "open_run"
            repeated = state(settings)
            differences = [
                (name, repeated[name], undisturbed[name])
                for name in undisturbed
                if repeated[name] != undisturbed[name]
            ]
            assert differences == [], (stage, effect)
        copy(after, places)
        if stage == "open_run":
            job["run_id"] = value
        if stage == "register":
            job["version"] = value
    assert undisturbed["status"] == "FINISHED"
    assert undisturbed["aliases"] == {"production": "1"}
    (row,) = undisturbed["ledger"]
    assert row["to"] == "1"
    assert row["applied_at"]
    assert row["evidence"] == f"runs:/{job['run_id']}"

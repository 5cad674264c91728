"""Trainings that are killed anywhere and tried again."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.promotion.ledger import Ledger
from tests.conftest import AS_OF
from tests.faults.jobs import program
from tests.mlflow_server.conftest import client, stages
from tests.support.training.small_installation import small_installation
from tests.training.conftest import changed

SPEC = changed(name="killed_model", experiment="killed")
STAGES = ("open_run", "dataset", "train", "evaluate", "gate", "register", "promote")
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
    settings = small_installation(tmp_path)
    settings = settings.model_copy(update={"mlflow_port": rig.settings.mlflow_port})
    defaults = {
        "settings": settings.model_dump(mode="json"),
        "spec": SPEC.model_dump(mode="json"),
        "as_of": AS_OF.isoformat(),
        "key": "killed",
        "run_id": None,
        "version": None,
        "dies": None,
    }
    with program("-m", "tests.faults.training.training_processes") as answers:
        yield settings, lambda job: answers([defaults | job])[0]


def kept(rig, settings):
    """Return where MLflow and the ledger keep the training; both are made."""
    Ledger(settings).close()
    experiment = client(settings).create_experiment(SPEC.experiment)
    mlflow = rig.settings.home / "mlflow"
    artifacts = mlflow / "artifacts" / experiment
    artifacts.mkdir(parents=True, exist_ok=True)
    return [mlflow / "mlflow.db", settings.home / "ledger.db", artifacts]


def copy(sources, targets):
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


def state(settings):
    """Return everything of the training that somebody can see, but clock times."""
    api = client(settings)
    (run,) = Tracking(settings).runs(SPEC.experiment)
    mlflow_run = api.get_run(run.run_id)
    experiments = [mlflow_run.info.experiment_id]
    models = api.search_logged_models(experiments, f"source_run_id = '{run.run_id}'")
    registry = Registry(settings)
    inputs = mlflow_run.inputs.dataset_inputs
    rows = []
    with closing(Ledger(settings)) as ledger:
        for row in ledger.rows(SPEC.name):
            is_applied = bool(row.applied_at)
            changes = {"time": "", "applied_at": is_applied, "created": 0}
            rows.append(row.as_json() | changes)
    return {
        "run": replace(run, run_id="", started=AS_OF),
        "files": files_of(api, run.run_id),
        "datasets": [entry.dataset.digest for entry in inputs],
        "models": [(model.status, model.tags) for model in models],
        "outputs": len(mlflow_run.outputs.model_outputs),
        "versions": registry.versions(SPEC.name),
        "stages": stages(settings, SPEC.name),
        "aliases": registry.aliases(SPEC.name),
        "ledger": rows,
    }


def files_of(api, run_id):
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
    job = {}
    places = kept(rig, settings)
    before = [tmp_path / f"before-{place.name}" for place in places]
    after = [tmp_path / f"after-{place.name}" for place in places]
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
            assert state(settings) == undisturbed, (stage, effect)
        copy(after, places)
        if stage == "open_run":
            job["run_id"] = value
        if stage == "register":
            job["version"] = value
    assert undisturbed["run"].status == "FINISHED"
    assert undisturbed["aliases"] == {"production": "1"}
    (row,) = undisturbed["ledger"]
    assert (row["to"], row["applied_at"]) == ("1", True)
    assert row["evidence"] == f"runs:/{job['run_id']}"

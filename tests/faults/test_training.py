"""Trainings that are killed anywhere and tried again, and two at once."""

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
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from core.settings import Settings

SHIPPED = load_spec("customer_churn_model")
FEW = {"n_estimators": 5, "max_depth": 4}
SMALL = {"name": "small", "type": "random_forest", "parameters": FEW}
OWN = {"name": "killed_model", "experiment": "killed", "estimators": [SMALL]}
SPEC = SHIPPED.model_validate(SHIPPED.model_dump() | OWN)
STAGES = ("open_run", "dataset", "train", "evaluate", "gate", "register", "promote")
EMPTY = {
    "spec": SPEC.model_dump(mode="json"),
    "run_id": None,
    "version": None,
    "dies": None,
}
SOME = {
    "open_run": (0, -1), "dataset": (2, -1), "train": (1, -1), "evaluate": (0, 2, -1),
    "register": (0, 1, 7, -4, -3, -2),
}  # fmt: skip
"""Where a stage has many effects of a kind, such as files: which ones are enough."""
FEW_KILLS = dict.fromkeys(STAGES, ()) | {"register": (0, -2), "promote": (-1,)}
"""Where most is at stake."""


@pytest.fixture(scope="module")
def training(
    rig: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, Callable[..., list[Any]]]]:
    """Start stages in an installation of few customers that shares the MLflow of the others."""
    home = tmp_path_factory.mktemp("training")
    rows = pull(new_settings(home / "source"), ORDERS, AS_OF).read_all()
    made = installation(home, rows.filter(pc.less(rows["customer_id"], 1000)))
    settings = made.model_copy(update={"mlflow_port": rig.settings.mlflow_port})
    place = {"settings": settings.model_dump(mode="json"), "as_of": AS_OF.isoformat()}
    with training_processes() as run:

        def start(*jobs: dict[str, Any]) -> list[Any]:
            return run(*[EMPTY | place | job for job in jobs])

        yield settings, start


def kept(rig: Any, settings: Settings) -> list[Path]:
    """Where MLflow and the ledger keep the trainings; both are made."""
    Ledger(settings).close()
    number = client(settings).create_experiment(SPEC.experiment)
    mlflow = rig.settings.home / "mlflow"
    (mlflow / "artifacts" / number).mkdir(parents=True, exist_ok=True)
    return [
        mlflow / "mlflow.db",
        settings.home / "ledger.db",
        mlflow / "artifacts" / number,
    ]


def copied(paths: list[Path], copies: list[Path]) -> None:
    """Make the copies the same as the paths; databases while they are in use."""
    for path, copy in zip(paths, copies, strict=True):
        if path.suffix != ".db":
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
            continue
        with (
            closing(sqlite3.connect(path)) as old,
            closing(sqlite3.connect(copy)) as new,
        ):
            old.backup(new)


def state(settings: Settings, key: str) -> dict[str, Any]:
    """Everything of the training of `key` that somebody can see, but clock times."""
    api, ledger = client(settings), Ledger(settings)
    (run,) = (run for run in Tracking(settings).runs(SPEC.experiment) if run.key == key)
    found = api.get_run(run.run_id)
    models = api.search_logged_models(
        [found.info.experiment_id], f"source_run_id = '{run.run_id}'"
    )
    files, folders = [], [""]
    while folders:
        items = api.list_artifacts(run.run_id, folders.pop())
        folders += [item.path for item in items if item.is_dir]
        files += [item.path for item in items if not item.is_dir]
    seen = {
        "status": run.status,
        "params": run.params,
        "metrics": {k: v for k, v in run.metrics.items() if k != "test/latency_p99_ms"},
        "tags": run.tags,
        "files": sorted(files),
        "datasets": [each.dataset.digest for each in found.inputs.dataset_inputs],
        "models": [(model.status, model.tags) for model in models],
        "outputs": len(found.outputs.model_outputs),
        "versions": [
            (v.version, v.run_id, v.tags)
            for v in Registry(settings).versions(SPEC.name)
        ],
        "stages": stages(settings, SPEC.name),
        "aliases": Registry(settings).aliases(SPEC.name),
        "ledger": [
            row.as_json() | {"time": "", "applied_at": bool(row.applied_at)}
            for row in ledger.rows(SPEC.name)
        ],
    }
    ledger.close()
    return seen


@pytest.mark.parametrize(
    "some",
    [FEW_KILLS, pytest.param(SOME, marks=pytest.mark.nightly)],
    ids=["few", "many"],
)
def test_killed_after_any_effect_a_stage_repeated_is_as_if_nothing_had_happened(
    rig: Any, training: Any, tmp_path: Path, some: dict[str, tuple[int, ...]]
) -> None:
    """Each stage begins where the undisturbed ones before it ended, so the whole chain holds."""
    settings, start = training
    job: dict[str, Any] = {"key": "killed"}
    places = kept(rig, settings)
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    copies = {
        folder: [folder / path.name for path in places] for folder in (before, after)
    }
    for stage in STAGES:
        copied(places, copies[before])
        ((said, effects),) = start(job | {"stages": [stage]})
        undisturbed = state(settings, "killed")
        copied(places, copies[after])
        for which in some.get(stage, range(effects)):
            last = range(1, effects + 1)[which]
            copied(copies[before], places)
            assert start(job | {"stages": [stage], "dies": last}) == [None]
            ((again, _),) = start(job | {"stages": [stage]})
            found = state(settings, "killed")
            other = {name: (of, undisturbed[name]) for name, of in found.items()
                     if of != undisturbed[name]}  # fmt: skip
            assert (again == said or stage == "open_run", other) == (True, {}), (
                stage,
                last,
            )
        copied(copies[after], places)
        job |= {"run_id": said} if stage == "open_run" else {}
        job |= {"version": said} if stage == "register" else {}
    assert (undisturbed["status"], undisturbed["aliases"]) == (
        "FINISHED",
        {"production": "1"},
    )
    (row,) = undisturbed["ledger"]
    found = (row["to"], row["applied_at"], row["evidence"])
    assert found == ("1", True, f"runs:/{job['run_id']}")


def test_of_two_trainings_at_once_both_register_and_one_promotes(training: Any) -> None:
    """Both were compared with the same champion; the one that comes too late is told who won."""
    settings, start = training
    with closing(Ledger(settings)) as ledger:
        before = ledger.rows(SPEC.name)
    champion, versions = (
        Registry(settings).production(SPEC.name),
        len(versions_of(settings)),
    )
    ended = start(*({"key": key, "stages": STAGES} for key in ("left", "right")))
    said = dict(zip(("left", "right"), (words for words, _ in ended), strict=True))
    (winner,) = (key for key, words in said.items() if "is in production, " in words)
    (loser,) = {"left", "right"} - {winner}
    won, lost = state(settings, winner), state(settings, loser)
    assert len(versions_of(settings)) == versions + 2
    first, second = won["tags"]["version"], lost["tags"]["version"]
    refusal = f"killed_model: production is version {first} (by {winner} at "
    assert said[loser].startswith(f"PromotionRefusedError: {refusal}"), said
    assert f"which version {second} was to replace" in said[loser]
    assert (won["status"], lost["status"]) == ("FINISHED", "FAILED")
    assert lost["tags"]["outcome"] in said[loser]
    assert won["aliases"] == {"production": first}
    *earlier, row = won["ledger"]
    assert len(earlier) == len(before)
    found = (row["from"], row["to"], row["who"], row["applied_at"])
    assert found == (champion, first, winner, True)


def versions_of(settings: Settings) -> list[str]:
    return [version.version for version in Registry(settings).versions(SPEC.name)]

"""Models and specs that a worker follows: which one answers, and when a version is tried again."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from core.spec import MODELS
from serving.prediction_log.append_log import AppendLog
from serving.repository import ModelRepository
from serving.versions.copies import LocalCopies, Origin, Refusal
from serving.watcher import RegistryWatcher
from tests.conftest import new_settings
from tests.serving.conftest import SPEC, application, client_of

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
START = NOW - timedelta(hours=3)
ORIGIN = Origin(created=1, digests={"sha256.model.onnx": "a"})
OTHER = Origin(created=1, digests={"sha256.model.onnx": "b"})


@pytest.mark.parametrize(
    ("minutes", "origin", "server_start", "is_due"),
    [
        (9, ORIGIN, START, False),
        (10, ORIGIN, START, True),
        (1, OTHER, START, True),
        (1, ORIGIN, NOW + timedelta(seconds=1), True),
    ],
)
def test_a_refused_version_is_tried_again_after_ten_minutes_a_change_or_a_restart(
    minutes, origin, server_start, is_due
):
    refusal = Refusal(reason="bad", origin=ORIGIN, time=NOW)
    later = NOW + timedelta(minutes=minutes)
    assert refusal.is_due(origin, server_start, later) == is_due


def test_a_start_without_mlflow_knows_of_which_model_a_version_was(tmp_path):
    copies = LocalCopies(new_settings(tmp_path), "m")
    copies.folder.mkdir(parents=True)
    for version, created in (("2", 5), ("3", 5), ("3", 5), ("1", 9)):
        copies.note_production(version, created)
    assert [*copies.production().items()] == [("1", 9), ("3", 5)]
    copies.note_production("1", 12)
    assert copies.production() == {"1": 12}
    (copies.folder / "production").write_text("3\n2")
    assert copies.production() == {}


SHIPPED = (MODELS / "customer_churn_model.toml").read_text()


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder of specs in place of models/."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr("serving.watcher.MODELS", folder)
    monkeypatch.setattr("core.spec.MODELS", folder)
    monkeypatch.setattr("core.spec.load_spec.__defaults__", (folder,))
    return folder


def write(models, name, before="", after=""):
    spec = SHIPPED.replace('"customer_churn_model"', f'"{name}"')
    spec = spec.replace(before, after)
    (models / f"{name}.toml").write_text(spec)


def test_an_added_changed_removed_or_broken_spec_affects_no_other_model(
    models, tmp_path
):
    settings = new_settings(tmp_path / "home")
    repository = ModelRepository(settings, AppendLog(tmp_path, "predictions"))

    async def follow():
        watcher = RegistryWatcher(settings, repository)
        write(models, "first")
        await watcher.poll()
        (first,) = repository
        assert (first.name, repository.default) == ("first", first)
        write(models, "second")
        (models / "broken.toml").write_text("name =")
        await watcher.poll()
        assert [model.name for model in repository] == ["first", "second"]
        assert repository.find("first") is first
        write(models, "second", "seed = 7", "seed = 8")
        second = repository.find("second")
        await watcher.poll()
        assert repository.find("second") is second
        assert second.versions.spec.seed == 8
        write(models, "second", '"customer_id"', '"shop_id"')
        await watcher.poll()
        assert repository.find("second") is second
        assert second.versions.signature.entity_key == {"shop_id": "int64"}
        (models / "second.toml").write_text("name =")
        await watcher.poll()
        assert repository.find("second") is second
        (models / "second.toml").unlink()
        await watcher.poll()
        assert [*repository] == [first]
        assert "MLflow does not answer" in str(watcher.problem)
        await watcher.close()

    asyncio.run(follow())


OTHER_SPEC = SPEC.model_copy(
    update={"name": "other_model", "entity_key": {"shop_id": "int64"}}
)
BOTH = "/models/customer_churn_model/predict, /models/other_model/predict"


@pytest.mark.parametrize(
    ("default", "specs", "path", "status", "reason"),
    [
        (None, (SPEC,), "/predict", 503, SPEC.name),
        (SPEC.name, (SPEC, OTHER_SPEC), "/predict", 503, SPEC.name),
        (None, (SPEC, OTHER_SPEC), "/predict", 404, BOTH),
        ("removed_model", (SPEC, OTHER_SPEC), "/invocations", 404, BOTH),
        (None, (), "/predict/batch", 404, "GYRE_DEFAULT_MODEL): none"),
    ],
)
def test_the_only_model_or_the_default_answers_where_no_name_is_given(
    tmp_path, default, specs, path, status, reason
):
    """Of an application that has no version yet."""
    settings = new_settings(tmp_path, default_model=default)
    repository = ModelRepository(settings, AppendLog(tmp_path, "predictions"))
    repository.update(specs)
    app = application(settings, repository)

    async def ask():
        async with client_of(app) as client:
            return await client.post(path, json={"customer_id": 1})

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert reason in answer.text

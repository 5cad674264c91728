"""Models and specs that a worker follows, and when a refused version is tried again."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from core.spec import MODELS
from serving.copies import Origin, Refusal
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from serving.watcher import RegistryWatcher
from tests.conftest import new_settings

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ORIGIN = Origin(created=1, digests={"sha256.model.onnx": "a"})
OTHER = Origin(created=1, digests={"sha256.model.onnx": "b"})


@pytest.mark.parametrize(
    ("minutes", "origin", "hours_since_start", "is_due"),
    [
        (9, ORIGIN, 3, False),
        (10, ORIGIN, 3, True),
        (1, OTHER, 3, True),
        (1, ORIGIN, 0, True),
    ],
)
def test_a_refused_version_is_tried_again_after_ten_minutes_a_change_or_a_restart(
    minutes, origin, hours_since_start, is_due
):
    refusal = Refusal(reason="bad", origin=ORIGIN, time=NOW)
    later = NOW + timedelta(minutes=minutes)
    server_start = later - timedelta(hours=hours_since_start)
    assert refusal.is_due(origin, server_start, later) == is_due


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
        assert (first.spec.name, repository.default) == ("first", first)
        write(models, "second")
        (models / "broken.toml").write_text("name =")
        await watcher.poll()
        assert [model.spec.name for model in repository] == ["first", "second"]
        assert repository.find("first") is first
        write(models, "second", "seed = 7", "seed = 8")
        second = repository.find("second")
        await watcher.poll()
        assert repository.find("second") is second
        assert second.spec.seed == 8
        write(models, "second", '"customer_id"', '"shop_id"')
        await watcher.poll()
        assert repository.find("second") is not second
        (models / "second.toml").unlink()
        await watcher.poll()
        assert [*repository] == [first]
        assert "MLflow does not answer" in str(watcher.problem)
        await watcher.close()

    asyncio.run(follow())

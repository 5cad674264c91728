"""What the registry watcher makes of MLflow's answer, and when a fetch is tried again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from core.spec import MODELS
from serving.model import RegisteredModel, registered_models
from serving.model_versions import LONGEST_WAIT, SHORTEST_WAIT, Refusal
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from serving.watcher import RegistryWatcher
from tests.conftest import new_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_refused_version_is_tried_ever_more_rarely() -> None:
    tried, waits = 0.0, []
    for _ in range(6):
        refusal = Refusal("gone", 0.0, tried)
        wait = next(w for w in range(100) if refusal.is_due(tried + w))
        waits.append(wait)
        tried += wait
    assert waits == [SHORTEST_WAIT, 10, 20, 40, LONGEST_WAIT, LONGEST_WAIT]


def test_roles_are_aliases_and_others_are_nobodys_business() -> None:
    aliases = {"production": "3", "previous": "2", "challenger": "4", "team-blue": "1"}
    answer = {
        "registered_models": [
            {
                "name": "churn",
                "creation_timestamp": 1_700_000_000_000,
                "aliases": [{"alias": a, "version": v} for a, v in aliases.items()],
                "tags": [
                    {"key": "challenger_traffic", "value": "4:25"},
                    {"key": "empty"},
                ],
            },
            {"name": "new", "creation_timestamp": 1},
        ]
    }
    roles = {"production": "3", "previous": "2", "challenger": "4"}
    assert registered_models(answer) == {
        "churn": RegisteredModel(1_700_000_000_000, roles, 25),
        "new": RegisteredModel(1, {}, 0),
    }


SHIPPED = (MODELS / "customer_churn_model.toml").read_text()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of specs in place of models/."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr("serving.watcher.MODELS", folder)
    monkeypatch.setattr("core.spec.MODELS", folder)
    monkeypatch.setattr("core.spec.load_spec.__defaults__", (folder,))
    return folder


def write(models: Path, name: str, before: str = "", after: str = "") -> None:
    spec = SHIPPED.replace('"customer_churn_model"', f'"{name}"')
    spec = spec.replace('"churn-predictor"', f'"{name}-predictor"').replace(
        before, after
    )
    (models / f"{name}.toml").write_text(spec)


def test_specs_come_change_and_go_and_touch_no_other_model(
    models: Path, tmp_path: Path
) -> None:
    """27: also where one of them is broken."""
    settings = new_settings(tmp_path / "home")
    repository = ModelRepository(settings, AppendLog(tmp_path, "predictions"))

    async def follow() -> None:
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
        (models / "second.toml").unlink()
        await watcher.poll()
        assert [*repository] == [first]
        assert "MLflow does not answer" in str(watcher.problem)
        await watcher.close()

    asyncio.run(follow())

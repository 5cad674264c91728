"""Stages set by hand: in MLflow's old UI, by its client, by the REST call of tutorials."""

from __future__ import annotations

import json
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from mlflow.exceptions import MlflowException

from core.settings import Settings
from mlflow_server.promotion import promote, reconcile, release, rollback
from mlflow_server.served_model import digest_tags
from mlflow_server.version_tags import packed
from tests.mlflow_server.conftest import client, new_model, stages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_server.ledger import Ledger, LedgerRow
    from mlflow_server.registry import Registry

CALL = "model-versions/transition-stage"
ANN = {"who": "ann", "why": "better"}


def whole_versions(settings: Settings, folder: Path, count: int = 3) -> str:
    """Register a model; the files of its versions are those that they were registered with."""
    model = f"m{uuid.uuid4().hex[:12]}"
    api = client(settings)
    api.create_registered_model(model)
    run = api.create_run("0").info
    places = {"model.onnx": "model", "serving.json": "model/extra_files"}
    for name, place in places.items():
        (folder / name).write_text(name)
        api.log_artifact(run.run_id, str(folder / name), place)
    tags = packed(digest_tags(folder))
    for _ in range(count):
        source = f"{run.artifact_uri}/model"
        api.create_model_version(model, source=source, run_id=run.run_id, tags=tags)
    return model


@pytest.fixture
def model(settings: Settings, tmp_path: Path) -> str:
    """Versions 1 to 3, none of them in any role."""
    return whole_versions(settings, tmp_path)


def by_client(
    settings: Settings, model: str, version: str, stage: str, **options: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        client(settings).transition_model_version_stage(
            model, version, stage, **options
        )


def by_rest(
    settings: Settings,
    model: str,
    version: str,
    stage: str,
) -> httpx.Response:
    """Do what tutorials do; others in the stage are to stay."""
    address = f"{settings.mlflow_address}/api/2.0/mlflow/{CALL}"
    body = {"name": model, "version": version, "stage": stage}
    return httpx.post(address, json=body, timeout=600)


def in_ui(settings: Settings, model: str, version: str, stage: str) -> httpx.Response:
    """Do what MLflow's UI does, which wants others archived."""
    address = f"{settings.mlflow_address}/ajax-api/2.0/mlflow/{CALL}"
    body = {"name": model, "version": version, "stage": stage}
    body["archive_existing_versions"] = True
    answer = httpx.post(address, json=body, timeout=600)
    assert answer.json()["model_version"]["current_stage"] == "Production"
    return answer


def written(row: LedgerRow) -> tuple[str, str | None, str | None, str, str]:
    assert row.applied_at
    return row.role, row.from_version, row.to_version, row.who, row.why


def refusal(settings: Settings, model: str, version: str, stage: str) -> str:
    """Return what MLflow's client raises; both ways change nothing."""
    before = stages(settings, model)
    with pytest.raises(MlflowException) as raised:
        by_client(settings, model, version, stage)
    answer = by_rest(settings, model, version, stage)
    assert 400 <= answer.status_code < 500
    assert str(raised.value) == "{error_code}: {message}".format(**answer.json())
    assert stages(settings, model) == before
    return str(raised.value)


@pytest.mark.parametrize(
    ("by_hand", "stage"),
    [
        (by_client, "Production"),
        (by_client, "production"),
        (by_rest, "Production"),
        (by_rest, "PRODUCTION"),
        (in_ui, "Production"),
    ],
)
def test_stage_production_is_a_promotion(
    settings: Settings,
    registry: Registry,
    ledger: Ledger,
    model: str,
    by_hand: Callable[..., None],
    stage: str,
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    by_hand(settings, model, "2", stage)
    promotion = ("production", "1", "2", "mlflow-ui", "stage Production set in MLflow")
    row = ledger.rows(model)[-1]
    assert written(row) == promotion
    assert row.action == "by stage"
    assert registry.production(model) == "2"
    assert stages(settings, model) == {"1": "Archived", "2": "Production"}
    assert len(reconcile(registry, ledger, model)) == 2
    assert rollback(registry, ledger, model, **ANN).to_version == "1"
    assert stages(settings, model) == {"1": "Production", "2": "Archived"}


def test_production_again_is_no_second_promotion_and_ends_a_detour_to_staging(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    for stage in ("Production", "Production", "Staging", "Production"):
        by_client(settings, model, "1", stage)
        assert stages(settings, model) == {"1": stage}
        assert registry.aliases(model) == {"production": "1"}
    assert len(reconcile(registry, ledger, model)) == 1


def test_staging_sets_no_role_and_is_always_allowed(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    by_client(settings, model, "1", "Staging")
    assert reconcile(registry, ledger, model) == []
    assert registry.aliases(model) == {}
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="shadow")
    rows = ledger.rows(model)
    for version in "23":
        by_client(settings, model, version, "staging")
    by_client(settings, model, "2", "Staging", archive_existing_versions=True)
    found = {"1": "Production", "2": "Staging", "3": "Archived"}
    assert stages(settings, model) == found
    assert reconcile(registry, ledger, model) == rows


def test_a_version_in_a_role_is_neither_archived_nor_without_a_stage(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=5)
    promote(registry, ledger, model, "3", **ANN, role="shadow")
    rows = ledger.rows(model)
    for stage in ("Archived", "archived", "None"):
        remedy = f"gyre rollback {model} --reason WHY, or promote another"
        assert remedy in refusal(settings, model, "1", stage)
        for version, role in (("2", "challenger"), ("3", "shadow")):
            remedy = f"gyre release {model} --role {role} --reason WHY"
            assert remedy in refusal(settings, model, version, stage)
            assert remedy in refusal(settings, model, f"0{version}", stage)
    assert reconcile(registry, ledger, model) == rows
    release(registry, ledger, model, "challenger", **ANN)
    by_client(settings, model, "2", "Archived")
    assert stages(settings, model) == {"1": "Production", "2": "Archived"}


def test_what_cannot_be_promoted_gets_no_stage(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """Files that are not those registered, no files, no such version, no such stage."""
    promote(registry, ledger, model, "1", **ANN)
    lineage = packed({"sha256.model.onnx": "0" * 64, "sha256.serving.json": "1" * 64})
    client(settings).set_model_version_tag(model, "2", "lineage", lineage["lineage"])
    damaged = refusal(settings, model, "2", "Production")
    assert "version 2 is damaged: model.onnx: sha256 is" in damaged
    assert f"gyre train {model} registers another" in damaged
    for version, stage, reason in (
        ("77", "Production", "77"),
        ("77", "Archived", "77"),
        ("latest", "Production", "latest"),
        ("3", "Live", "Invalid Model Version stage: Live"),
    ):
        assert reason in refusal(settings, model, version, stage)
    assert len(reconcile(registry, ledger, model)) == 1
    assert stages(settings, model) == {"1": "Production"}
    foreign = new_model(settings, 1)
    refusal(settings, foreign, "1", "Production")
    assert reconcile(registry, ledger, foreign) == []


def test_a_body_that_is_no_such_call_is_refused(settings: Settings, model: str) -> None:
    """Also a text that holds the call as JSON, which MLflow reads for old clients."""
    address = f"{settings.mlflow_address}/api/2.0/mlflow/{CALL}"
    call = {"name": model, "version": "1", "stage": "Production"}
    for body in ({}, json.dumps(call)):
        assert httpx.post(address, json=body).status_code == httpx.codes.BAD_REQUEST
    assert stages(settings, model) == {}


def test_a_change_of_the_alias_takes_the_stage_along(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    by_client(settings, model, "1", "Production")
    client(settings).set_registered_model_alias(model, "production", "2")
    assert stages(settings, model) == {"1": "Archived", "2": "Production"}
    client(settings).delete_registered_model_alias(model, "production")
    assert stages(settings, model) == {"1": "Archived", "2": "Archived"}
    by_client(settings, model, "2", "Production")
    versions = [row.to_version for row in reconcile(registry, ledger, model)]
    assert versions == ["1", "2", None, "2"]


def test_of_many_hands_at_once_one_version_is_in_production_afterwards(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    versions = "321" * 4
    names = ["Production", "Archived", "None", "Production"] * 3
    set_stage = partial(by_rest, settings, model)
    with ThreadPoolExecutor(4) as hands:
        statuses = {
            answer.status_code for answer in hands.map(set_stage, versions, names)
        }
    assert statuses <= {httpx.codes.OK, httpx.codes.CONFLICT}
    rows = reconcile(registry, ledger, model)
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    assert all(row.applied_at for row in rows)
    stage_of = stages(settings, model)
    production = [version for version in stage_of if stage_of[version] == "Production"]
    assert production == [registry.production(model)] == [rows[-1].to_version]


@pytest.mark.nightly  # MLflow waits for 20 s
def test_a_stage_is_refused_where_the_ledger_cannot_be_written(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    with ledger.exclusive(model):
        answer = by_rest(settings, model, "2", "Production")
    assert answer.status_code == httpx.codes.CONFLICT
    assert "try again" in answer.json()["message"]
    assert stages(settings, model) == {"1": "Production"}
    assert len(reconcile(registry, ledger, model)) == 1

"""Stages set by hand: in MLflow's old UI, by its client, by the REST call of tutorials."""

from __future__ import annotations

import json
import uuid
import warnings
from functools import partial

import httpx
import pytest
from mlflow.exceptions import MlflowException

from mlflow_server.promotion import promote, reconcile, release, rollback
from mlflow_server.served_model import digest_tags
from mlflow_server.version_tags import packed
from tests.mlflow_server.conftest import client, new_model, stages

CALL = "model-versions/transition-stage"
ANN = {"who": "ann", "why": "better"}


def whole_versions(settings, folder, count=3):
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
def model(settings, tmp_path):
    """Versions 1 to 3, none of them in any role."""
    return whole_versions(settings, tmp_path)


def by_client(settings, model, version, stage, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        client(settings).transition_model_version_stage(
            model, version, stage, **options
        )


def by_rest(
    settings,
    model,
    version,
    stage,
    api="api",
    **options,
):
    """Set a stage as tutorials do, or as MLflow's UI does."""
    address = f"{settings.mlflow_address}/{api}/2.0/mlflow/{CALL}"
    body = {"name": model, "version": version, "stage": stage, **options}
    return httpx.post(address, json=body, timeout=600)


def refusal(settings, model, version, stage):
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
        (by_client, "production"),
        (by_rest, "PRODUCTION"),
        (partial(by_rest, api="ajax-api", archive_existing_versions=True), "Production"),
    ],
    ids=["client", "REST", "UI"],
)  # fmt: skip
def test_stage_production_is_a_promotion(
    settings, registry, ledger, model, by_hand, stage
):
    promote(registry, ledger, model, "1", **ANN)
    by_hand(settings, model, "2", stage)
    by_hand(settings, model, "2", stage)  # again: no second promotion
    row = ledger.rows(model)[-1]
    assert row.applied_at
    assert (row.role, row.from_version, row.to_version) == ("production", "1", "2")
    assert (row.who, row.why) == ("mlflow-ui", "stage Production set in MLflow")
    assert row.action == "by stage"
    assert registry.production(model) == "2"
    assert stages(settings, model) == {"1": "Archived", "2": "Production"}
    assert len(reconcile(registry, ledger, model)) == 2
    assert rollback(registry, ledger, model, **ANN).to_version == "1"
    assert stages(settings, model) == {"1": "Production", "2": "Archived"}


def test_staging_sets_no_role_and_is_always_allowed(settings, registry, ledger, model):
    by_client(settings, model, "1", "Staging")
    assert reconcile(registry, ledger, model) == []
    assert registry.aliases(model) == {}
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="shadow")
    rows = ledger.rows(model)
    for version in "23":
        by_client(settings, model, version, "staging")
    by_client(settings, model, "2", "Staging", archive_existing_versions=True)
    stage_of = {"1": "Production", "2": "Staging", "3": "Archived"}
    assert stages(settings, model) == stage_of
    assert reconcile(registry, ledger, model) == rows


def test_a_version_in_a_role_is_neither_archived_nor_without_a_stage(
    settings, registry, ledger, model
):
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


def test_a_version_that_cannot_be_promoted_gets_no_stage(
    settings, registry, ledger, model
):
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


def test_a_text_that_holds_the_call_is_refused(settings, model):
    """MLflow itself reads it for old clients."""
    address = f"{settings.mlflow_address}/api/2.0/mlflow/{CALL}"
    call = {"name": model, "version": "1", "stage": "Production"}
    answer = httpx.post(address, json=json.dumps(call))
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert stages(settings, model) == {}


@pytest.mark.nightly  # MLflow waits for 20 s
def test_a_stage_is_refused_where_the_ledger_cannot_be_written(
    settings, registry, ledger, model
):
    promote(registry, ledger, model, "1", **ANN)
    with ledger.exclusive(model):
        answer = by_rest(settings, model, "2", "Production")
    assert answer.status_code == httpx.codes.CONFLICT
    assert "try again" in answer.json()["message"]
    assert stages(settings, model) == {"1": "Production"}
    assert len(reconcile(registry, ledger, model)) == 1

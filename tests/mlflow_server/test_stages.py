"""Stages set by hand: in MLflow's old UI, by its client, by the REST call of tutorials."""

import json
import warnings
from functools import partial

import httpx
import pytest
from mlflow.exceptions import MlflowException

from mlflow_server.tags import packed
from tests.mlflow_server.conftest import Roles, client, new_model

CALL = "model-versions/transition-stage"


@pytest.fixture
def model(settings, tmp_path):
    """Versions 1 to 3, none of them in any role, with the files that they were registered with."""
    return new_model(settings, 3, tmp_path)


def by_client(roles, version, stage, **options):
    api = client(roles.settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        api.transition_model_version_stage(roles.model, version, stage, **options)


def by_rest(roles, version, stage, api="api", **options):
    """Set a stage as tutorials do, or as MLflow's UI does."""
    address = f"{roles.settings.mlflow_address}/{api}/2.0/mlflow/{CALL}"
    body = {"name": roles.model, "version": version, "stage": stage, **options}
    return httpx.post(address, json=body, timeout=600)


def refusal(roles, version, stage):
    """Return what MLflow's client raises; both ways change nothing."""
    before = roles.stages
    with pytest.raises(MlflowException) as raised:
        by_client(roles, version, stage)
    answer = by_rest(roles, version, stage)
    assert 400 <= answer.status_code < 500
    assert str(raised.value) == "{error_code}: {message}".format(**answer.json())
    assert roles.stages == before
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
def test_the_stage_production_set_by_hand_is_a_promotion(roles, by_hand, stage):
    roles.promote("1")
    by_hand(roles, "2", stage)
    by_hand(roles, "2", stage)  # again: no second promotion
    row = roles.rows[-1]
    assert row.applied_at
    assert (row.role, row.from_version, row.to_version) == ("production", "1", "2")
    assert (row.who, row.why) == ("mlflow-ui", "stage Production set in MLflow")
    assert row.action == "by stage"
    assert roles.aliases == {"production": "2"}
    assert roles.stages == {"1": "Archived", "2": "Production"}
    assert len(roles.reconcile()) == 2
    assert roles.rollback().to_version == "1"
    assert roles.stages == {"1": "Production", "2": "Archived"}


def test_staging_sets_no_role_and_is_always_allowed(roles):
    by_client(roles, "1", "Staging")
    assert roles.reconcile() == []
    assert roles.aliases == {}
    roles.promote("1")
    roles.promote("2", role="shadow")
    rows = roles.rows
    for version in "23":
        by_client(roles, version, "staging")
    by_client(roles, "2", "Staging", archive_existing_versions=True)
    assert roles.stages == {"1": "Production", "2": "Staging", "3": "Archived"}
    assert roles.reconcile() == rows


def test_a_version_in_a_role_can_neither_be_archived_nor_lose_its_stage(roles):
    roles.promote("1")
    roles.promote("2", role="challenger", percent=5)
    roles.promote("3", role="shadow")
    rows = roles.rows
    for stage in ("Archived", "archived", "None"):
        remedy = f"gyre rollback {roles.model} --reason WHY, or promote another"
        assert remedy in refusal(roles, "1", stage)
        for version, role in (("2", "challenger"), ("3", "shadow")):
            remedy = f"gyre release {roles.model} --role {role} --reason WHY"
            assert remedy in refusal(roles, version, stage)
            assert remedy in refusal(roles, f"0{version}", stage)
    assert roles.reconcile() == rows
    roles.release("challenger")
    by_client(roles, "2", "Archived")
    assert roles.stages == {"1": "Production", "2": "Archived"}


def test_a_version_that_cannot_be_promoted_gets_no_stage(roles):
    """Files that are not those registered, no files, no such version or stage, a text of JSON."""
    roles.promote("1")
    lineage = packed({"sha256.model.onnx": "0" * 64, "sha256.serving.json": "1" * 64})
    api = client(roles.settings)
    api.set_model_version_tag(roles.model, "2", "lineage", lineage["lineage"])
    damaged = refusal(roles, "2", "Production")
    assert "version 2 is damaged: model.onnx: sha256 is" in damaged
    assert f"gyre train {roles.model} registers another" in damaged
    for version, stage, reason in (
        ("77", "Production", "77"),
        ("77", "Archived", "77"),
        ("latest", "Production", "latest"),
        ("3", "Live", "Invalid Model Version stage: Live"),
    ):
        assert reason in refusal(roles, version, stage)
    call = {"name": roles.model, "version": "2", "stage": "Production"}
    address = f"{roles.settings.mlflow_address}/api/2.0/mlflow/{CALL}"
    answer = httpx.post(address, json=json.dumps(call))  # as MLflow reads old clients
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert len(roles.reconcile()) == 1
    assert roles.stages == {"1": "Production"}


def test_a_model_that_is_not_gyres_has_its_stages_as_in_stock_mlflow(roles):
    foreign = Roles(
        roles.settings, roles.registry, roles.ledger, new_model(roles.settings, 2)
    )
    by_client(foreign, "1", "Production")
    by_rest(foreign, "2", "Production", archive_existing_versions=True)
    assert foreign.stages == {"1": "Archived", "2": "Production"}
    by_client(foreign, "2", "None")
    assert foreign.stages == {"1": "Archived"}
    assert foreign.reconcile() == []


@pytest.mark.nightly  # MLflow waits for 20 s
def test_a_stage_is_refused_where_the_ledger_cannot_be_written(roles):
    roles.promote("1")
    with roles.ledger.exclusive(roles.model):
        answer = by_rest(roles, "2", "Production")
    assert answer.status_code == httpx.codes.CONFLICT
    assert "try again" in answer.json()["message"]
    assert roles.stages == {"1": "Production"}
    assert len(roles.reconcile()) == 1

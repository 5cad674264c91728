"""Promotions on the real server and ways back; races, kills and hands in the UI: see faults/."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mlflow_server.connection import client
from mlflow_server.ledger import LedgerRow, now
from mlflow_server.promotion import _carried_out, promote, reconcile, rollback
from stack.errors import PromotionRefusedError, RegistryError
from stack.live import Live, read_live
from tests.mlflow_server.conftest import stages

if TYPE_CHECKING:
    from mlflow_server.ledger import Ledger
    from mlflow_server.registry import Registry
    from stack.settings import Settings

ANN = {"who": "ann", "why": "better"}


def test_a_promotion_is_one_row_and_moves_alias_and_stage(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN, replaces=None)
    row = promote(registry, ledger, model, "2", **ANN, evidence="runs:/abc/report.html")
    assert registry.production(model) == "2"
    assert stages(registry, model) == {"1": "Archived", "2": "Production"}
    assert row == ledger.rows(model)[1]
    shown = row.as_json()
    assert shown.pop("time").endswith("+00:00")
    assert shown == {
        "model": model,
        "sequence": 2,
        "role": "production",
        "percent": 100,
        "from": "1",
        "to": "2",
        "who": "ann",
        "why": "better",
        "evidence": "runs:/abc/report.html",
        "state": "applied",
    }
    assert reconcile(registry, ledger, model) == []


def test_other_roles_leave_production_and_stages_alone(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=5)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=25)
    assert registry.aliases(model) == {"production": "1", "challenger": "2"}
    assert stages(registry, model) == {"1": "Production"}
    assert [row.percent for row in ledger.rows(model)] == [100, 5, 25]


def test_what_is_in_a_role_and_what_it_reads_is_on_file(
    registry: Registry, ledger: Ledger, model: str, settings: Settings
) -> None:
    client(settings).set_model_version_tag(model, "1", "feature_service", "churn_v1")
    first = Live(model, "1", "production", "churn_v1")
    promote(registry, ledger, model, "1", **ANN)
    assert [each for each in read_live(ledger.live) if each.model == model] == [first]
    promote(registry, ledger, model, "2", **ANN, role="shadow")
    both = [first, Live(model, "2", "shadow", "")]
    assert [each for each in read_live(ledger.live) if each.model == model] == both
    (ledger.live / f"{model}.json").unlink()  # of an installation that never had it
    assert reconcile(registry, ledger, model) == []
    assert [each for each in read_live(ledger.live) if each.model == model] == both
    for role in ("production", "shadow"):
        client(settings).delete_registered_model_alias(model, role)
    reconcile(registry, ledger, model)
    assert [each for each in read_live(ledger.live) if each.model == model] == []


def test_the_loser_is_told_who_won(registry: Registry, ledger: Ledger, model: str) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", who="bob", why="urgent")
    with pytest.raises(PromotionRefusedError, match=r"version 2 \(by bob at 20.* UTC: urgent\)"):
        promote(registry, ledger, model, "3", **ANN, replaces="1")
    with pytest.raises(PromotionRefusedError, match="not no version"):
        promote(registry, ledger, model, "3", **ANN, replaces=None)
    with pytest.raises(PromotionRefusedError, match="version 2 is already production"):
        promote(registry, ledger, model, "2", **ANN)
    with pytest.raises(PromotionRefusedError, match="role must be one of"):
        promote(registry, ledger, model, "2", **ANN, role="king")
    with pytest.raises(PromotionRefusedError, match=r"0\.\.100"):
        promote(registry, ledger, model, "2", **ANN, percent=101)
    assert len(ledger.rows(model)) == 2


def test_an_unknown_version_is_named_with_the_known_ones(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    with pytest.raises(RegistryError, match=r"no version 77: known are 1, 2, 3, 4, 5"):
        promote(registry, ledger, model, "77", **ANN)
    with pytest.raises(RegistryError, match="known are none"):
        promote(registry, ledger, "never_registered", "1", **ANN)
    assert ledger.rows(model) == []


def test_one_that_wakes_up_late_disturbs_nothing(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    with ledger.exclusive(model) as book:  # all that `promote` did before it fell asleep
        change = ("production", 100, "1", "2", "late", "", None)
        late = LedgerRow(model, 2, *change, "pending", now())
        book.append(late)
    assert registry.production(model) == "1"
    assert [row.state for row in reconcile(registry, ledger, model)] == ["applied"]  # helped
    promote(registry, ledger, model, "3", **ANN)
    assert _carried_out(registry, ledger, late) == replace(late, state="applied")
    assert registry.production(model) == "3"
    assert len(ledger.rows(model)) == 3


def test_rolling_back_twice_goes_further_back(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    for version in "123":
        promote(registry, ledger, model, version, **ANN)
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "2"
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "1"
    with pytest.raises(PromotionRefusedError, match="nothing to go back to"):
        rollback(registry, ledger, model, who="ann", why="harm")
    promote(registry, ledger, model, "4", **ANN)
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "1"
    assert stages(registry, model)["1"] == "Production"


def test_rollback_passes_over_a_version_deleted_meanwhile(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    for version in "123":
        promote(registry, ledger, model, version, **ANN)
    client(settings).delete_model_version(model, "2")
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "1"

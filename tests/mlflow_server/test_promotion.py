"""Promotions on the real server and ways back; races, kills and hands in the UI: see faults/."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from core.errors import PromotionRefusedError, RegistryError
from mlflow_server.connection import client
from mlflow_server.ledger import LedgerRow, now
from mlflow_server.promotion import promote, reconcile, release, rollback
from mlflow_server.roles import Deployed
from tests.mlflow_server.conftest import stages

if TYPE_CHECKING:
    from core.settings import Settings
    from mlflow_server.ledger import Ledger
    from mlflow_server.registry import Registry

ANN = {"who": "ann", "why": "better"}


def test_a_promotion_is_one_row_and_moves_alias_and_stage(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN, replaces=None)
    row = promote(registry, ledger, model, "2", **ANN, evidence="runs:/abc/report.html")
    assert registry.production(model) == "2"
    assert registry.aliases(model) == {"production": "2", "previous": "1"}
    assert stages(settings, model) == {"1": "Archived", "2": "Production"}
    assert row == ledger.rows(model)[1]
    shown = row.as_json()
    assert shown.pop("time").endswith("+00:00")
    assert shown.pop("applied_at").endswith("+00:00")
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
    }
    assert reconcile(registry, ledger, model) == ledger.rows(model)
    assert len(ledger.rows(model)) == 2


def test_other_roles_leave_production_and_stages_alone(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=5)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=25)
    assert registry.aliases(model) == {"production": "1", "challenger": "2"}
    assert stages(settings, model) == {"1": "Production"}
    assert registry.deployed(model).tags == {"challenger_traffic": "2:25"}
    assert [row.percent for row in ledger.rows(model)] == [100, 5, 25]


def test_the_loser_is_told_who_won(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", who="bob", why="urgent")
    with pytest.raises(
        PromotionRefusedError, match=r"version 2 \(by bob at 20.* UTC: urgent\)"
    ):
        promote(registry, ledger, model, "3", **ANN, replaces="1")
    with pytest.raises(PromotionRefusedError, match="not no version"):
        promote(registry, ledger, model, "3", **ANN, replaces=None)
    with pytest.raises(PromotionRefusedError, match="version 2 is already production"):
        promote(registry, ledger, model, "2", **ANN)
    with pytest.raises(PromotionRefusedError, match="role must be one of"):
        promote(registry, ledger, model, "2", **ANN, role="king")
    with pytest.raises(PromotionRefusedError, match=r"1\.\.100 .*101"):
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


def test_a_promotion_again_with_the_same_evidence_is_the_one_of_before(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    first = promote(
        registry, ledger, model, "1", **ANN, replaces=None, evidence="runs:/a"
    )
    assert (
        promote(registry, ledger, model, "1", **ANN, replaces=None, evidence="runs:/a")
        == first
    )
    with pytest.raises(PromotionRefusedError, match=r"is version 1 .* not no version"):
        promote(registry, ledger, model, "1", **ANN, replaces=None, evidence="runs:/b")
    assert ledger.rows(model) == [first]


def test_a_row_whose_version_was_deleted_never_takes_effect(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    ledger.insert(
        LedgerRow(model, 2, "production", 100, "1", "2", "late", "", None, now())
    )
    client(settings).delete_model_version(model, "2")
    assert reconcile(registry, ledger, model)[1].applied_at is None
    promote(registry, ledger, model, "3", **ANN)
    assert [row.applied_at is None for row in ledger.rows(model)] == [
        False,
        True,
        False,
    ]
    assert registry.aliases(model) == {"production": "3", "previous": "1"}


def test_traffic_set_by_hand_is_out_of_band_and_stands(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=5)
    for value in ("2:50", "3:50", "2:many"):
        client(settings).set_registered_model_tag(model, "challenger_traffic", value)
        reconcile(registry, ledger, model)
    shares = [(row.percent, row.who) for row in ledger.rows(model)[2:]]
    assert shares == [(50, "out of band"), (0, "out of band")]
    assert registry.deployed(model).tags == {"challenger_traffic": "2:many"}


def test_rolling_back_twice_goes_further_back(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    for version in "123":
        promote(registry, ledger, model, version, **ANN)
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "2"
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "1"
    with pytest.raises(PromotionRefusedError, match="nothing to go back to"):
        rollback(registry, ledger, model, who="ann", why="harm")
    promote(registry, ledger, model, "4", **ANN)
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "1"
    assert stages(settings, model)["1"] == "Production"


def test_rollback_passes_over_a_version_deleted_meanwhile(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    for version in "123":
        promote(registry, ledger, model, version, **ANN)
    client(settings).delete_model_version(model, "2")
    assert rollback(registry, ledger, model, who="ann", why="harm").to_version == "1"


def roles(
    ledger: Ledger, model: str
) -> list[tuple[str, int, str | None, str | None, str]]:
    return [
        (row.role, row.percent, row.from_version, row.to_version, row.who)
        for row in ledger.rows(model)
        if row.applied_at
    ]


def test_a_role_is_ended_once_and_production_never(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=5)
    with pytest.raises(
        PromotionRefusedError, match=r"challenger is version 2 .* not version 3"
    ):
        release(registry, ledger, model, "challenger", **ANN, replaces="3")
    row = release(registry, ledger, model, "challenger", **ANN, evidence="{}")
    found = (row.from_version, row.to_version, row.percent, row.evidence)
    assert found == ("2", None, 0, "{}")
    assert registry.deployed(model) == Deployed({"production": "1"}, {})
    with pytest.raises(
        PromotionRefusedError, match="no version is challenger, nothing"
    ):
        release(registry, ledger, model, "challenger", **ANN)
    with pytest.raises(PromotionRefusedError, match="gyre rollback"):
        release(registry, ledger, model, "production", **ANN)
    assert len(reconcile(registry, ledger, model)) == 3


def test_an_ending_killed_on_the_way_is_carried_out_by_the_next_who_looks(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="shadow")
    ledger.insert(
        LedgerRow(model, 3, "shadow", 0, "2", None, "ann", "enough", None, now())
    )
    assert registry.aliases(model)["shadow"] == "2"
    assert reconcile(registry, ledger, model)[2].applied_at
    assert registry.aliases(model) == {"production": "1"}


def test_a_challenger_ends_with_the_production_that_it_was_tried_against(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=100)
    promote(registry, ledger, model, "2", **ANN)  # it won
    promote(registry, ledger, model, "3", **ANN, role="challenger", percent=5)
    rollback(registry, ledger, model, who="ann", why="harm")
    promote(registry, ledger, model, "4", **ANN, role="challenger", percent=5)
    registry.set_alias(model, "production", "5")
    assert registry.deployed(model) == Deployed(
        {"production": "5", "previous": "1"}, {}
    )
    assert [row for row in roles(ledger, model) if row[0] == "challenger"] == [
        ("challenger", 100, None, "2", "ann"), ("challenger", 0, "2", None, "gyre"),
        ("challenger", 5, None, "3", "ann"), ("challenger", 0, "3", None, "gyre"),
        ("challenger", 5, None, "4", "ann"), ("challenger", 0, "4", None, "gyre"),
    ]  # fmt: skip
    assert [row.sequence for row in ledger.rows(model)] == list(range(1, 11))
    assert "production is version 1 now" in ledger.rows(model)[6].why


def test_a_shadow_ends_once_its_version_answers_and_outlives_a_change_of_production(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "3", **ANN, role="shadow")
    promote(registry, ledger, model, "2", **ANN)
    assert registry.aliases(model) == {
        "production": "2",
        "previous": "1",
        "shadow": "3",
    }
    promote(registry, ledger, model, "3", **ANN, role="challenger", percent=5)
    assert registry.aliases(model) == {
        "production": "2",
        "previous": "1",
        "challenger": "3",
    }
    assert roles(ledger, model)[-1] == ("shadow", 0, "3", None, "gyre")


def test_a_role_beside_production_needs_one_and_a_version_has_one_role(
    registry: Registry, ledger: Ledger, model: str
) -> None:
    with pytest.raises(
        PromotionRefusedError, match=f"compared with: gyre promote {model} 2"
    ):
        promote(registry, ledger, model, "2", **ANN, role="shadow")
    promote(registry, ledger, model, "1", **ANN)
    with pytest.raises(
        PromotionRefusedError, match="is in role production, and cannot be chall"
    ):
        promote(registry, ledger, model, "1", **ANN, role="challenger", percent=5)
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=5)
    with pytest.raises(
        PromotionRefusedError, match="is in role challenger, and cannot be shadow"
    ):
        promote(registry, ledger, model, "2", **ANN, role="shadow")
    with pytest.raises(PromotionRefusedError, match="0 is gyre release"):
        promote(registry, ledger, model, "2", **ANN, role="challenger", percent=0)
    with pytest.raises(PromotionRefusedError, match="percent 100"):
        promote(registry, ledger, model, "3", **ANN, role="shadow", percent=50)


def test_roles_changed_by_hand_are_written_down_and_such_a_challenger_answers_nobody(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    for role, version in (("challenger", "2"), ("shadow", "3")):
        client(settings).set_registered_model_alias(model, role, version)
    client(settings).delete_registered_model_alias(model, "shadow")
    assert roles(ledger, model)[1:] == [
        ("challenger", 0, None, "2", "mlflow-ui"),
        ("shadow", 100, None, "3", "mlflow-ui"),
        ("shadow", 0, "3", None, "mlflow-ui"),
    ]
    promote(registry, ledger, model, "2", **ANN, role="challenger", percent=10)
    assert roles(ledger, model)[-1] == ("challenger", 10, "2", "2", "ann")

"""Promotions on the real server, and rollbacks; for races, kills and changes by hand see faults/."""

from contextlib import closing

import pytest

from core.errors import PromotionRefusedError, RegistryError
from core.settings import Settings
from mlflow_server.promotion import promote
from mlflow_server.promotion.by_hand import write_down
from mlflow_server.promotion.ledger import Ledger, LedgerRow, now
from mlflow_server.roles import TRAFFIC_TAG, RoleAssignment
from tests.mlflow_server.conftest import ANN, client

CHALLENGER = {"role": "challenger", "percent": 5}
SHADOW = {"role": "shadow"}


def test_a_promotion_writes_one_row_moves_alias_and_stage_and_can_be_repeated(roles):
    roles.promote("1", replaces=None)
    change = {"replaces": "1", "evidence": "runs:/abc/report.html"}
    row = roles.promote("2", **change)
    assert roles.aliases == {"production": "2"}
    assert roles.stages == {"1": "Archived", "2": "Production"}
    assert row == roles.rows[1]
    shown = row.as_json()
    assert shown.pop("time").endswith("+00:00")
    assert shown.pop("applied_at").endswith("+00:00")
    assert shown == {
        "model": roles.model,
        "sequence": 2,
        "role": "production",
        "percent": 100,
        "from": "1",
        "to": "2",
        "evidence": "runs:/abc/report.html",
        "action": "promote",
        "created": roles.registry.assignment(roles.model).created,
        **ANN,
    }
    assert roles.promote("2", **change) == row
    roles.refuses(
        "2", "is version 2 .* not version 1", replaces="1", evidence="runs:/b"
    )
    assert roles.reconcile() == roles.rows
    assert len(roles.rows) == 2


def test_a_refused_promotion_names_the_version_that_won_and_the_expected_values(roles):
    roles.promote("1")
    roles.promote("2")
    roles.refuses("3", r"version 2 \(by ann at 20.* UTC: better\)", replaces="1")
    roles.refuses("3", "not no version", replaces=None)
    roles.refuses("2", "version 2 is already production")
    roles.refuses("2", "role must be one of", role="king")
    roles.refuses("2", "1 to 100.*101", percent=101)
    with pytest.raises(RegistryError, match=r"no version 77: known are 1, 2, 3, 4, 5"):
        roles.promote("77")
    assert len(roles.rows) == 2


def test_a_change_that_no_row_explains_is_entered_with_its_author(roles, tmp_path):
    other = Settings(home=tmp_path, mlflow_port=roles.settings.mlflow_port)
    roles.promote("1")
    write_down(other, roles.model, {"production": "1"}, "eve")
    write_down(other, roles.model, {"no role": "1"}, "eve")
    with closing(Ledger(other)) as ledger:
        (row,) = ledger.rows(roles.model)
        assert (row.who, row.action) == ("eve", "by hand")
        assert row.why == "alias production set in MLflow"
        roles.promote("2")
        *_, row = promote.reconcile(roles.registry, ledger, roles.model)
        assert (row.from_version, row.to_version) == ("1", "2")
        assert row.who == "out of band"


def test_a_row_of_a_deleted_version_never_takes_effect(roles):
    roles.promote("1")
    late = ("production", 100, "1", "2", "late", "", None)
    created = roles.registry.assignment(roles.model).created
    row = LedgerRow(roles.model, 2, *late, now(), created=created)
    roles.ledger.insert(row)
    client(roles.settings).delete_model_version(roles.model, "2")
    assert roles.reconcile()[1].applied_at is None
    roles.promote("3")
    assert [bool(row.applied_at) for row in roles.rows] == [True, False, True]
    assert roles.aliases == {"production": "3"}


def test_a_second_rollback_goes_further_back(roles):
    for version in "123":
        roles.promote(version)
    for version in "21":
        assert roles.rollback().to_version == version
    with pytest.raises(PromotionRefusedError, match="nothing to go back to"):
        roles.rollback()
    for version in "453":
        roles.promote(version)
    client(roles.settings).delete_model_version(roles.model, "5")
    for version in "41":
        assert roles.rollback().to_version == version


def test_a_release_ends_a_role_by_a_row_and_is_refused_for_production(roles):
    roles.promote("1")
    roles.promote("2", **CHALLENGER)
    for role, reason, more in (
        ("challenger", "challenger is version 2 .* not version 3", {"replaces": "3"}),
        ("shadow", "no version is shadow, nothing", {}),
        ("production", "gyre rollback", {}),
    ):
        with pytest.raises(PromotionRefusedError, match=reason):
            roles.release(role, **more)
    row = roles.release("challenger", evidence="{}")
    assert (row.percent, row.evidence, row.action) == (0, "{}", "release")
    assert (row.from_version, row.to_version) == ("2", None)
    assignment = roles.registry.assignment(roles.model)
    assert (assignment.aliases, assignment.tags) == ({"production": "1"}, {})
    assert len(roles.reconcile()) == 3


def test_a_challenger_ends_when_its_production_version_changes(roles):
    roles.promote("1")
    roles.promote("2", **CHALLENGER)
    roles.promote("2")  # it won
    roles.promote("3", **CHALLENGER)
    roles.rollback()
    roles.promote("4", **CHALLENGER)
    client(roles.settings).set_registered_model_alias(roles.model, "production", "5")
    assignment = roles.registry.assignment(roles.model)
    assert (assignment.aliases, assignment.tags) == ({"production": "5"}, {})
    assert [*roles.stages.values()].count("Production") == 1
    trials = [row for row in roles.rows if row.role == "challenger"]
    assert [row.to_version for row in trials] == ["2", None, "3", None, "4", None]
    assert {row.who for row in trials if row.action == "release"} == {"gyre"}
    assert [row.action for row in roles.rows if row not in trials] == [
        "promote", "promote", "rollback", "by hand",
    ]  # fmt: skip
    assert "production is version 1 now" in roles.rows[6].why


def test_a_challenger_or_shadow_needs_a_production_version_and_a_version_has_one_role(
    roles,
):
    roles.refuses("2", f"compared with: gyre promote {roles.model} 2", **SHADOW)
    roles.promote("1")
    roles.refuses("1", "is in role production, and cannot be chall", **CHALLENGER)
    roles.promote("2", **CHALLENGER)
    roles.refuses("2", "is in role challenger, and cannot be shadow", **SHADOW)
    roles.refuses("2", "To end a role: gyre release", role="challenger", percent=0)
    roles.refuses("3", "percent 100", **SHADOW, percent=50)
    roles.promote("3", **SHADOW)
    roles.promote("2")
    assert roles.aliases == {"production": "2", "shadow": "3"}  # a shadow stays
    roles.promote("3", **CHALLENGER)
    assert roles.aliases == {"production": "2", "challenger": "3"}


@pytest.mark.parametrize(
    ("tag", "percent"),
    [("2:5", 5), ("2:100", 100), ("3:5", 0), ("2:0", 0), ("2:101", 0), ("2:05", 0),
     ("2:5.0", 0), ("2:5\n", 0), ("2:\u0665", 0), ("", 0)],
)  # fmt: skip
def test_a_traffic_tag_counts_only_with_the_version_and_a_whole_percent(tag, percent):
    tags = {TRAFFIC_TAG: tag}
    assert (
        RoleAssignment("m", 1, {"challenger": "2"}, tags).percent("challenger")
        == percent
    )
    assert RoleAssignment("m", 1, {}, tags).percent("challenger") == 0

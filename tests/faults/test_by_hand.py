"""Roles changed in the MLflow UI or by a client of it, past the ledger."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_server.connection import client
from mlflow_server.promotion import promote, reconcile, rollback
from mlflow_server.registry import Registry
from tests.mlflow_server.conftest import stages
from tests.serving.load import under_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_server.ledger import Ledger
    from stack.settings import Settings

ANN = {"who": "ann", "why": "better"}


def by_hand(settings: Settings, model: str, version: str, stage: str, *, archive: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        client(settings).transition_model_version_stage(
            model, version, stage, archive_existing_versions=archive
        )


def alias_by_hand(settings: Settings, model: str, version: str) -> None:
    client(settings).set_registered_model_alias(model, "production", version)


@pytest.mark.parametrize("what", ["alias", "stage"])
def test_a_promotion_by_hand_is_served_within_5_s_and_in_the_ledger_as_outside(
    rig: Any, served: Any, ledger: Ledger, what: str
) -> None:
    """8: alias or stage Production, while requests are under way."""
    model = rig.spec.name
    with under_load(served.client) as answers:
        if what == "alias":
            alias_by_hand(rig.settings, model, served.second)
        else:
            by_hand(rig.settings, model, served.second, "Production", archive=True)
        began = time.monotonic()
        rig.answers_as(served.client, served.second)
        assert time.monotonic() - began < 5
        rig.wait_until("the row", lambda: ledger.rows(model)[-1].who == "outside")
        row = ledger.rows(model)[-1]
        found = (row.from_version, row.to_version, row.state)
        assert found == (served.first, served.second, "applied")
        rig.promote(served.first)
        rig.answers_as(served.client, served.first)
    assert {a.status for a in answers} == {200}


def test_a_broken_version_promoted_by_hand_is_refused_like_any_other(
    rig: Any, served: Any, ledger: Ledger
) -> None:
    """8: its warm-up does not hold; the ledger has it all the same."""
    model, version = rig.spec.name, rig.register(-5.0, score="Log").version
    alias_by_hand(rig.settings, model, version)
    said = f"version {version} is refused: ModelRefusedError"
    rig.wait_until(said, lambda: said in served.client.get("/health/ready").text)
    rig.wait_until("the row", lambda: ledger.rows(model)[-1].who == "outside")
    assert ledger.rows(model)[-1].to_version == version
    assert rig.predict(served.client).json()["model_version"] == served.first
    rig.promote(served.first)
    rig.wait_until("no refusal", lambda: "refused" not in served.client.get("/health/ready").text)


def test_an_alias_moved_by_hand_is_written_down(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: an alias moved and removed."""
    promote(registry, ledger, model, "1", **ANN)
    registry.set_alias(model, "production", "3")
    (row,) = reconcile(registry, ledger, model)
    assert (row.from_version, row.to_version, row.who, row.state) == (
        "1",
        "3",
        "outside",
        "applied",
    )
    assert stages(registry, model) == {"1": "Archived", "3": "Production"}
    client(settings).delete_registered_model_alias(model, "production")
    (row,) = reconcile(registry, ledger, model)
    assert (row.from_version, row.to_version) == ("3", None)
    assert "Production" not in stages(registry, model).values()
    assert reconcile(registry, ledger, model) == []
    assert rollback(registry, ledger, model, who="ann", why="oops").to_version == "3"


@pytest.mark.parametrize("archive", [True, False])
def test_a_stage_set_by_hand_takes_the_alias_along(
    settings: Settings,
    registry: Registry,
    ledger: Ledger,
    model: str,
    *,
    archive: bool,
) -> None:
    """8: the stage, with and without archiving the one before."""
    promote(registry, ledger, model, "1", **ANN)
    promote(registry, ledger, model, "2", **ANN)
    for version in ("4", "1"):  # a new one, and the one archived before
        by_hand(settings, model, version, "Production", archive=archive)
        (row,) = reconcile(registry, ledger, model)
        assert (row.to_version, row.who, row.state) == (version, "outside", "applied")
        assert registry.production(model) == version
        found = stages(registry, model)
        assert [v for v, stage in found.items() if stage == "Production"] == [version]
    assert reconcile(registry, ledger, model) == []


def test_a_stage_taken_by_hand_comes_back(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: the stage taken from what is in production."""
    promote(registry, ledger, model, "1", **ANN)
    by_hand(settings, model, "1", "Archived", archive=False)
    assert reconcile(registry, ledger, model) == []
    assert stages(registry, model) == {"1": "Production"}


class Interrupted(Registry):
    """Its promotion has moved the alias when a hand puts another version into Production."""

    hand: Callable[[], None]

    def set_alias(self, model: str, role: str, version: str) -> None:
        super().set_alias(model, role, version)
        type(self).set_alias = Registry.set_alias  # once
        self.hand()


def interrupted(settings: Settings, model: str, version: str) -> Interrupted:
    registry = type("Once", (Interrupted,), {})(settings)
    registry.hand = lambda: by_hand(settings, model, version, "Production", archive=False)
    return registry


def test_whatever_a_hand_changes_is_served_and_on_record_within_10_s(
    rig: Any, served: Any, ledger: Ledger
) -> None:
    """8: by alias, stage and role, twice at once, and while a promotion is under way."""
    model, settings, one, two = rig.spec.name, rig.settings, served.first, served.second
    three, api, registry = rig.register(0.9).version, client(settings), Registry(settings)

    def alias(version: str, role: str = "production") -> None:
        api.set_registered_model_alias(model, role, version)

    def stage(version: str, to: str = "Production") -> None:
        by_hand(settings, model, version, to, archive=False)

    def promoted_meanwhile() -> None:
        promote(interrupted(settings, model, three), ledger, model, one, **ANN)

    def both() -> None:
        alias(one)
        stage(two)

    hand = "outside"
    for change, answers, written in (
        (lambda: alias(two), two, [("production", one, two, hand)]),
        (lambda: stage(three), three, [("production", two, three, hand)]),
        (lambda: stage(three, "Archived"), three, []),
        (lambda: alias(two, "challenger"), three, [("challenger", None, two, hand)]),
        (lambda: api.delete_registered_model_alias(model, "challenger"), three,
         [("challenger", two, None, hand)]),
        (lambda: api.delete_registered_model_alias(model, "production"), three,
         [("production", three, None, hand)]),
        (both, two, [("production", None, one, hand), ("production", one, two, hand)]),
        (promoted_meanwhile, three,
         [("production", two, one, "ann"), ("production", one, three, hand)]),
    ):  # fmt: skip
        before, began = len(ledger.rows(model)), time.monotonic()
        change()
        total = before + len(written)
        rig.wait_until("rows", lambda total=total: len(ledger.rows(model)) == total, 10)
        rig.answers_as(served.client, answers, 10)
        rig.wait_until("stages", lambda: in_step(registry, model), 10)
        assert time.monotonic() - began < 10
        rows = ledger.rows(model)[before:]
        assert [(r.role, r.from_version, r.to_version, r.who) for r in rows] == written
        assert {row.state for row in rows} <= {"applied"}
    rig.promote(one)
    rig.answers_as(served.client, one)


def in_step(registry: Registry, model: str) -> bool:
    """Whether nothing but the alias's version is in stage Production."""
    found = [v for v, stage in stages(registry, model).items() if stage == "Production"]
    version = registry.production(model)
    return found == ([version] if version else [])


def test_two_stages_set_by_hand_are_two_rows_and_the_later_one_stays(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
    """8: in quick succession, and beside a promotion that was killed."""
    promote(registry, ledger, model, "1", **ANN)
    for version in ("4", "3"):
        by_hand(settings, model, version, "Production", archive=False)
    rows = reconcile(registry, ledger, model)
    assert [(r.from_version, r.to_version, r.who) for r in rows] == [
        ("1", "4", "outside"),
        ("4", "3", "outside"),
    ]
    assert registry.production(model) == "3"
    assert in_step(registry, model)

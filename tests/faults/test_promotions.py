"""Promotions from several processes at once, and some that are killed on the way."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_server.promotion import promote, reconcile
from tests.mlflow_server.conftest import new_model, stages

if TYPE_CHECKING:
    from collections.abc import Callable

    from core.settings import Settings
    from mlflow_server.ledger import Ledger, LedgerRow
    from mlflow_server.registry import Registry

ANN = {"who": "ann", "why": "better"}


@dataclass
class Contest:
    """A model whose version 1 is in production; `run` promotes from processes of their own."""

    run: Callable[..., dict[str, Any]]
    settings: Settings
    registry: Registry
    ledger: Ledger
    model: str

    def dies(self, version: str, when: str = "before") -> None:
        """Let a process be killed around the change of the alias."""
        ended = self.run(self.model, [version], dies=when)
        assert ended[version][1] == -signal.SIGKILL

    def reconcile(self) -> list[LedgerRow]:
        return reconcile(self.registry, self.ledger, self.model)

    @property
    def rows(self) -> list[LedgerRow]:
        return self.ledger.rows(self.model)

    @property
    def in_production(self) -> tuple[str | None, list[str]]:
        """The version with the alias, and all with the stage."""
        versions = stages(self.settings, self.model).items()
        with_stage = [version for version, stage in versions if stage == "Production"]
        return self.registry.production(self.model), with_stage


@pytest.fixture
def contest(
    promoting,
    settings,
    registry,
    ledger,
):
    model = new_model(settings, 9)
    promote(registry, ledger, model, "1", **ANN)
    return Contest(promoting, settings, registry, ledger, model)


@pytest.mark.parametrize(
    ("processes", "rounds"),
    [(4, 1), pytest.param(8, 200, marks=pytest.mark.nightly)],
)
def test_of_processes_that_promote_at_once_exactly_one_wins(contest, processes, rounds):
    """6: the others are told who won; rows before it stay; ledger, alias and stage agree."""
    for _ in range(rounds):
        before = contest.rows
        current = before[-1].to_version
        versions = [f"{number}" for number in range(1, 10) if f"{number}" != current]
        ended = contest.run(contest.model, versions[:processes], replaces=current)
        answers = {version: answer for version, (answer, _) in ended.items()}
        (winner,) = [version for version, answer in answers.items() if answer == "won"]
        del answers[winner]
        refusal = f"version {winner} (by process {winner}"
        assert all(refusal in answer for answer in answers.values()), answers
        *earlier, last = contest.rows
        assert earlier == before
        assert last.sequence == len(before) + 1
        assert (last.from_version, last.to_version) == (current, winner)
        assert last.applied_at
        assert contest.in_production == (winner, [winner])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_promotion_killed_before_or_after_the_alias_is_completed_later(contest, when):
    """7: SIGKILL between ledger row and alias, and between alias and stage."""
    contest.dies("2", when)
    assert contest.in_production == ("1" if when == "before" else "2", ["1"])
    assert [bool(row.applied_at) for row in contest.rows] == [True, False]
    rows = contest.reconcile()
    assert (rows[1].who, len(rows)) == ("process 2", 2)
    assert rows[1].applied_at
    assert contest.in_production == ("2", ["2"])
    assert contest.reconcile() == rows


def test_a_change_by_hand_after_a_killed_promotion_stays(contest):
    """7, 8."""
    contest.dies("2")
    contest.registry.set_alias(contest.model, "production", "4")
    rows = contest.reconcile()
    changes = [(row.to_version, row.who, bool(row.applied_at)) for row in rows[1:]]
    assert changes == [("2", "process 2", False), ("4", "mlflow-ui", True)]
    assert contest.in_production == ("4", ["4"])

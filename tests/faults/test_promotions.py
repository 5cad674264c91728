"""Promotions from several processes at once, and some that are killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_server.promotion import promote, reconcile
from stack.environment import process_environment
from tests.mlflow_server.conftest import new_model, stages
from tests.preloaded import commands_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from core.settings import Settings
    from mlflow_server.ledger import Ledger, LedgerRow
    from mlflow_server.registry import Registry

ANN = {"who": "ann", "why": "better"}
REFUSED = 3
"""Exit code of `gyre` for a promotion that came too late."""


def test_of_two_gyre_promote_at_once_one_wins_and_the_other_is_told(
    rig: Any, served: Any, registry: Registry, ledger: Ledger
) -> None:
    """6: two shells, the same version to be replaced; the winner is served."""
    model, third = rig.spec.name, rig.register(0.7).version
    before, started = ledger.rows(model), {}
    for version in (served.second, third):
        command = [
            commands_folder() / "gyre",
            "promote",
            model,
            version,
            "--replaces",
            served.first,
        ]
        started[version] = subprocess.Popen(
            [*command, "--reason", f"for {version}"], env=process_environment(rig.settings),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    said = {
        version: process.communicate(timeout=600)
        for version, process in started.items()
    }
    codes = {version: process.returncode for version, process in started.items()}
    assert sorted(codes.values()) == [0, REFUSED], said
    winner, loser = sorted(codes, key=lambda version: codes[version])
    assert f"version {winner} (by shell:" in said[loser][1]
    assert f"for {winner})" in said[loser][1]
    rows = ledger.rows(model)
    assert rows[:-1] == before
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    assert (rows[-1].from_version, rows[-1].to_version) == (served.first, winner)
    assert rows[-1].applied_at
    assert registry.production(model) == winner
    rig.answers_as(served.client, winner)
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)


@dataclass
class Contest:
    """A model whose version 1 is in production; `run` promotes from processes of their own."""

    run: Callable[..., dict[str, Any]]
    settings: Settings
    registry: Registry
    ledger: Ledger
    model: str

    def promote(self, version: str) -> None:
        promote(self.registry, self.ledger, self.model, version, **ANN)

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
    promoting: Callable[..., dict[str, Any]],
    settings: Settings,
    registry: Registry,
    ledger: Ledger,
) -> Contest:
    model = new_model(settings, 9)
    promote(registry, ledger, model, "1", **ANN)
    return Contest(promoting, settings, registry, ledger, model)


@pytest.mark.parametrize(
    ("processes", "rounds"),
    [(4, 1), pytest.param(8, 200, marks=pytest.mark.nightly)],
)
def test_of_processes_at_once_exactly_one_wins(
    contest: Contest, processes: int, rounds: int
) -> None:
    """6: the others are told who won; rows before it stay; ledger, alias and stage agree."""
    for _ in range(rounds):
        before = contest.rows
        current = before[-1].to_version
        versions = [f"{number}" for number in range(1, 10) if f"{number}" != current]
        versions = versions[:processes]
        ended = contest.run(contest.model, versions, replaces=current)
        said = {version: word for version, (word, _) in ended.items()}
        (winner,) = [version for version, word in said.items() if word == "won"]
        del said[winner]
        told = f"version {winner} (by process {winner}"
        assert all(told in word for word in said.values()), said
        *earlier, last = contest.rows
        assert earlier == before
        assert last.sequence == len(before) + 1
        assert (last.from_version, last.to_version) == (current, winner)
        assert last.applied_at
        assert contest.in_production == (winner, [winner])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_alias_is_made_good(contest: Contest, when: str) -> None:
    """7: SIGKILL between ledger row and alias, and between alias and stage."""
    contest.dies("2", when)
    assert contest.in_production == ("1" if when == "before" else "2", ["1"])
    assert [bool(row.applied_at) for row in contest.rows] == [True, False]
    rows = contest.reconcile()
    assert (rows[1].who, len(rows)) == ("process 2", 2)
    assert rows[1].applied_at
    assert contest.in_production == ("2", ["2"])
    assert contest.reconcile() == rows


def test_a_dead_promotion_blocks_nobody(contest: Contest) -> None:
    """7: the next promotion finishes it first."""
    contest.dies("2")
    contest.promote("3")
    applied = [row.to_version for row in contest.rows if row.applied_at]
    assert applied == ["1", "2", "3"]


def test_a_hand_beats_a_dead_promotion(contest: Contest) -> None:
    """7, 8: what a person did meanwhile stays."""
    contest.dies("2")
    contest.registry.set_alias(contest.model, "production", "4")
    rows = contest.reconcile()
    changes = [(row.to_version, row.who, bool(row.applied_at)) for row in rows[1:]]
    assert changes == [("2", "process 2", False), ("4", "mlflow-ui", True)]
    assert contest.in_production == ("4", ["4"])


def test_gyre_ledger_finishes_what_a_killed_process_left_behind(
    promoting: Callable[..., dict[str, Any]], rig: Any, served: Any, ledger: Ledger
) -> None:
    """7: killed between ledger row and alias; the next command makes them agree, and it serves."""
    model, before = rig.spec.name, len(ledger.rows(rig.spec.name))
    ended = promoting(model, [served.second], replaces=served.first, dies="before")
    assert ended[served.second][1] == -signal.SIGKILL
    command = [commands_folder() / "gyre", "ledger", model, "--json"]
    environment = process_environment(rig.settings)
    said = subprocess.run(
        command, env=environment, capture_output=True, check=True
    ).stdout
    assert json.loads(said)[-1]["applied_at"]
    rig.answers_as(served.client, served.second)
    (row,) = ledger.rows(model)[before:]
    found = (row.from_version, row.to_version, row.who)
    assert found == (served.first, served.second, f"process {served.second}")
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)

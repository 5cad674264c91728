"""Promotions from several processes at once, and some that are killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_server.promotion import promote, reconcile
from stack.environment import process_environment
from tests.mlflow_server.conftest import new_model, stages
from tests.preloaded import commands_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from core.settings import Settings
    from mlflow_server.ledger import Ledger
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


def test_of_four_processes_at_once_exactly_one_wins(
    promoting: Callable[..., dict[str, Any]],
    settings: Settings,
    registry: Registry,
    ledger: Ledger,
    model: str,
) -> None:
    """6: four at once; the others are told who won, the ledger has no gap."""
    promote(registry, ledger, model, "1", **ANN)
    ended = promoting(model, ["2", "3", "4", "5"])
    said = [word for word, _ in ended.values()]
    (winner,) = [
        version for version, word in zip("2345", said, strict=True) if word == "won"
    ]
    assert (
        sum(f"version {winner} (by process {winner}" in word for word in said) == 3
    ), said
    assert registry.production(model) == winner
    rows = ledger.rows(model)
    assert [(r.sequence, r.to_version) for r in rows] == [(1, "1"), (2, winner)]
    assert all(row.applied_at for row in rows)
    assert stages(settings, model) == {"1": "Archived", winner: "Production"}


@pytest.mark.nightly
def test_of_eight_processes_at_once_exactly_one_wins_two_hundred_times(
    promoting: Callable[..., dict[str, Any]],
    settings: Settings,
    registry: Registry,
    ledger: Ledger,
) -> None:
    """6: one winner a round, earlier rows as they were, ledger, alias and stage agree."""
    model, versions = new_model(settings, 9), [str(number) for number in range(1, 10)]
    promote(registry, ledger, model, "1", **ANN)
    for _ in range(200):
        before = ledger.rows(model)
        current = before[-1].to_version
        ended = promoting(
            model, [v for v in versions if v != current], replaces=current
        )
        (winner,) = [version for version, (word, _) in ended.items() if word == "won"]
        told = [word for version, (word, _) in ended.items() if version != winner]
        assert all(f"version {winner} (by process {winner}" in word for word in told), (
            told
        )
        *earlier, last = ledger.rows(model)
        assert earlier == before
        assert last.sequence == len(before) + 1
        assert (last.from_version, last.to_version) == (current, winner)
        assert last.applied_at
        assert registry.production(model) == winner
        assert stages(settings, model)[winner] == "Production"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_alias_is_made_good(
    promoting: Callable[..., dict[str, Any]],
    settings: Settings,
    registry: Registry,
    ledger: Ledger,
    model: str,
    when: str,
) -> None:
    """7: SIGKILL between ledger row and alias, and between alias and stage."""
    promote(registry, ledger, model, "1", **ANN)
    assert promoting(model, ["2"], dies=when)["2"][1] == -signal.SIGKILL
    assert registry.production(model) == ("1" if when == "before" else "2")
    assert stages(settings, model) == {"1": "Production"}
    assert [bool(row.applied_at) for row in ledger.rows(model)] == [True, False]
    rows = reconcile(registry, ledger, model)
    assert (rows[1].who, len(rows)) == ("process 2", 2)
    assert rows[1].applied_at
    assert registry.aliases(model) == {"production": "2", "previous": "1"}
    assert stages(settings, model) == {"1": "Archived", "2": "Production"}
    assert reconcile(registry, ledger, model) == rows


def test_a_dead_promotion_blocks_nobody(
    promoting: Callable[..., dict[str, Any]],
    registry: Registry,
    ledger: Ledger,
    model: str,
) -> None:
    """7: whoever promotes next finishes it first."""
    promote(registry, ledger, model, "1", **ANN)
    assert promoting(model, ["2"], dies="before")["2"][1] == -signal.SIGKILL
    promote(registry, ledger, model, "3", **ANN)
    assert [
        (r.from_version, r.to_version) for r in ledger.rows(model) if r.applied_at
    ] == [
        (None, "1"),
        ("1", "2"),
        ("2", "3"),
    ]


def test_a_hand_beats_a_dead_promotion(
    promoting: Callable[..., dict[str, Any]],
    registry: Registry,
    ledger: Ledger,
    model: str,
) -> None:
    """7, 8: what a person did meanwhile stays."""
    promote(registry, ledger, model, "1", **ANN)
    assert promoting(model, ["2"], dies="before")["2"][1] == -signal.SIGKILL
    registry.set_alias(model, "production", "4")
    rows = reconcile(registry, ledger, model)
    assert [
        (r.from_version, r.to_version, r.who, bool(r.applied_at)) for r in rows[1:]
    ] == [
        ("1", "2", "process 2", False),
        ("1", "4", "mlflow-ui", True),
    ]
    assert registry.production(model) == "4"


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

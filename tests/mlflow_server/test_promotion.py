"""Promotions on the real server: races, kills, hands in the UI, ways back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_server.connection import client
from mlflow_server.ledger import LedgerRow, now
from mlflow_server.promotion import _carried_out, promote, reconcile, rollback
from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_server.ledger import Ledger
    from mlflow_server.registry import Registry
    from stack.settings import Settings

ANN = {"who": "ann", "why": "better"}


@pytest.fixture(scope="module")
def promoting(settings: Settings) -> Iterator[Callable[..., dict[str, Any]]]:
    """Promote from other processes, see `promoting_processes.py`."""
    program = [sys.executable, str(Path(__file__).with_name("promoting_processes.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    place = {"home": str(settings.home), "mlflow_port": settings.mlflow_port}
    with subprocess.Popen(program, **pipes) as process:

        def job(model: str, versions: str, *, dies: str | None = None) -> dict[str, Any]:
            what = {"model": model, "versions": list(versions), "replaces": "1", "dies": dies}
            process.stdin.write(json.dumps({"settings": place, **what}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield job


def by_hand(settings: Settings, model: str, version: str, stage: str, *, archive: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        client(settings).transition_model_version_stage(
            model, version, stage, archive_existing_versions=archive
        )


def stages(registry: Registry, model: str) -> dict[str, str]:
    return {v.version: v.stage for v in registry.versions(model) if v.stage != "None"}


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


def test_of_four_processes_at_once_exactly_one_wins(
    promoting: Callable[..., dict[str, Any]], registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    ended = promoting(model, "2345")
    said = [word for word, _ in ended.values()]
    (winner,) = [version for version, word in zip("2345", said, strict=True) if word == "won"]
    assert sum(f"version {winner} (by process {winner}" in word for word in said) == 3, said
    assert registry.production(model) == winner
    rows = ledger.rows(model)
    assert [(r.sequence, r.to_version, r.state) for r in rows] == [
        (1, "1", "applied"),
        (2, winner, "applied"),
    ]
    assert stages(registry, model) == {"1": "Archived", winner: "Production"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_alias_is_made_good(
    promoting: Callable[..., dict[str, Any]],
    registry: Registry,
    ledger: Ledger,
    model: str,
    when: str,
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    assert promoting(model, "2", dies=when)["2"][1] == -signal.SIGKILL
    assert registry.production(model) == ("1" if when == "before" else "2")
    assert stages(registry, model) == {"1": "Production"}
    assert [row.state for row in ledger.rows(model)] == ["applied", "pending"]
    (row,) = reconcile(registry, ledger, model)
    assert (row.sequence, row.state, row.who) == (2, "applied", "process 2")
    assert registry.production(model) == "2"
    assert stages(registry, model) == {"1": "Archived", "2": "Production"}
    assert reconcile(registry, ledger, model) == []


def test_a_dead_promotion_blocks_nobody(
    promoting: Callable[..., dict[str, Any]], registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    assert promoting(model, "2", dies="before")["2"][1] == -signal.SIGKILL
    promote(registry, ledger, model, "3", **ANN)
    changes = [(r.from_version, r.to_version, r.state) for r in ledger.rows(model)]
    assert changes == [(None, "1", "applied"), ("1", "2", "applied"), ("2", "3", "applied")]


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


def test_a_hand_beats_a_dead_promotion(
    promoting: Callable[..., dict[str, Any]], registry: Registry, ledger: Ledger, model: str
) -> None:
    promote(registry, ledger, model, "1", **ANN)
    assert promoting(model, "2", dies="before")["2"][1] == -signal.SIGKILL
    registry.set_alias(model, "production", "4")
    rows = reconcile(registry, ledger, model)
    assert [(r.to_version, r.who, r.state) for r in rows] == [
        ("2", "process 2", "superseded"),
        ("4", "outside", "applied"),
    ]
    assert registry.production(model) == "4"


def test_an_alias_moved_by_hand_is_written_down(
    settings: Settings, registry: Registry, ledger: Ledger, model: str
) -> None:
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
    promote(registry, ledger, model, "1", **ANN)
    by_hand(settings, model, "1", "Archived", archive=False)
    assert reconcile(registry, ledger, model) == []
    assert stages(registry, model) == {"1": "Production"}


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

"""The rules that make ledger and MLflow agree, without either."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mlflow_server.ledger import LedgerRow
from mlflow_server.reconcile import Seen, history, next_row, over

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def row(
    at: int, old: str | None, new: str | None, state: str = "applied", **other: Any
) -> LedgerRow:
    values = {"role": "production", "percent": 100, "who": "ann", "why": "", "evidence": None}
    changed = {"model": "m", "sequence": at, "from_version": old, "to_version": new}
    return LedgerRow(**{**values, **changed, "state": state, "time": TIME, **other})


def seen(production: str | None, *staged: str, has_stages: bool = True, **others: Any) -> Seen:
    """`staged` are in stage Production, the latest changed first."""
    aliases = ({"production": production} if production else {}) | others
    rest = "Archived" if has_stages else "None"
    return Seen(aliases, dict.fromkeys(staged, "Production") | {
        version: rest for version in "1234" if version not in staged
    })  # fmt: skip


def outside(at: int, old: str | None, new: str | None, why: str, **other: Any) -> LedgerRow:
    return row(at, old, new, who="outside", why=f"{why} outside Gyre", **other)


FIRST = row(1, None, "1")
HISTORY = [FIRST, row(2, "1", "2")]
STARTED = [FIRST, row(2, "1", "2", "pending")]
APPLIED, SUPERSEDED = HISTORY[1], row(2, "1", "2", "superseded")
BESIDE = {"role": "challenger", "percent": 5}
TRIED = [*HISTORY, row(3, None, "3", **BESIDE)]
ENDING = row(4, "3", None, "pending", role="challenger", percent=0)
BY_ALIAS, BY_STAGE = "alias production was changed", "stage Production was set"


@pytest.mark.parametrize(
    ("rows", "found", "expected"),
    [
        ([], seen(None, has_stages=False), None),
        (HISTORY, seen("2", "2"), None),
        (STARTED, seen("1", "1"), APPLIED),
        # killed after the alias: the stage lags and must not be taken for a hand's work
        (STARTED, seen("2", "1"), APPLIED),
        (STARTED, seen("2", "2"), APPLIED),
        (STARTED, seen("3", "1"), SUPERSEDED),
        (STARTED, seen(None, "1"), SUPERSEDED),
        (HISTORY, seen("3", "2"), outside(3, "2", "3", BY_ALIAS)),
        (HISTORY, seen("3", "3"), outside(3, "2", "3", BY_ALIAS)),
        (HISTORY, seen(None, "2"), outside(3, "2", None, BY_ALIAS, percent=0)),
        ([], seen("1", has_stages=False), outside(1, None, "1", BY_ALIAS)),
        (HISTORY, seen("2", "3", "2"), outside(3, "2", "3", BY_STAGE)),
        (HISTORY, seen("2", "1"), outside(3, "2", "1", BY_STAGE)),
        (HISTORY, seen("2", "4", "3", "2"), outside(3, "2", "3", BY_STAGE)),  # 4 came after it
        ([], seen(None, "1"), outside(1, None, "1", BY_STAGE)),
        (HISTORY, seen("2"), APPLIED),  # its stage was taken: put in step again
        (HISTORY, seen("2", has_stages=False), None),
        (
            HISTORY,
            seen("2", "2", shadow="3"),
            outside(3, None, "3", "alias shadow was changed", role="shadow"),
        ),
        ([*HISTORY, row(3, "2", "3", "superseded")], seen("2", "2"), None),
        (TRIED, seen("2", "2", challenger="3"), None),
        ([*TRIED, ENDING], seen("2", "2", challenger="3"), replace(ENDING, state="applied")),
        ([*TRIED, ENDING], seen("2", "2"), replace(ENDING, state="applied")),
        (
            [*TRIED, ENDING],
            seen("2", "2", challenger="4"),
            replace(ENDING, state="superseded"),
        ),
    ],
)
def test_the_next_step(rows: list[LedgerRow], found: Seen, expected: LedgerRow | None) -> None:
    assert next_row("m", rows, found, TIME) == expected


def test_a_pending_row_for_a_deleted_version_does_not_block_for_ever() -> None:
    lost = row(2, "1", "9", "pending")
    assert next_row("m", [FIRST, lost], seen("1", "1"), TIME) == replace(lost, state="superseded")


def test_going_back_takes_what_came_after_off_the_way_back() -> None:
    steps = [(None, "1"), ("1", "2"), ("2", "3"), ("3", "2")]
    rows = [row(at, *step) for at, step in enumerate(steps, 1)]
    assert history(rows) == ["1", "2"]
    assert history([*rows, row(5, "2", "4"), row(6, "4", "5", "superseded")]) == ["1", "2", "4"]
    assert history([*rows, row(5, None, "4", role="shadow")]) == ["1", "2"]


@pytest.mark.parametrize(
    ("rows", "found", "ended"),
    [
        (HISTORY, seen("2"), None),
        (TRIED, seen("2", challenger="3"), None),
        ([*TRIED, row(4, "2", "3")], seen("3", challenger="3"), "challenger"),
        ([*TRIED, row(4, "2", "1")], seen("1", challenger="3"), "challenger"),
        ([*TRIED, row(4, "2", None)], seen(None, challenger="3"), "challenger"),
        ([*TRIED, row(4, "2", "1", "superseded")], seen("2", challenger="3"), None),
        ([*TRIED, row(4, "2", "1"), row(5, "3", "4", **BESIDE)], seen("1", challenger="4"), None),
        (TRIED, seen("2", challenger="3", shadow="4"), None),
        (TRIED, seen("2", challenger="3", shadow="3"), "shadow"),
        (TRIED, seen("2", shadow="2"), "shadow"),
        ([*TRIED, row(4, "2", "1")], seen("1", challenger="3", shadow="3"), "challenger"),
    ],
)
def test_which_role_is_over(rows: list[LedgerRow], found: Seen, ended: str | None) -> None:
    row = over("m", rows, found, TIME)
    assert (row and row.role) == ended
    if row:
        assert (row.sequence, row.state, row.percent) == (len(rows) + 1, "pending", 0)
        assert (row.from_version, row.to_version) == (found.aliases[row.role], None)

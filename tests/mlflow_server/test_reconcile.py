"""The rules that make ledger and MLflow agree, without either."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from mlflow_server.ledger import LedgerRow
from mlflow_server.promotion import history
from mlflow_server.reconcile import Record, Restage, Seen, Settle, Step, plan_reconcile

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def row(
    at: int, old: str | None, new: str | None, state: str = "applied", **other: Any
) -> LedgerRow:
    values = {"role": "production", "percent": 100, "who": "ann", "why": "", "evidence": None}
    changed = {"model": "m", "sequence": at, "from_version": old, "to_version": new}
    return LedgerRow(**{**values, **changed, "state": state, "time": TIME, **other})


def seen(production: str | None, *staged: str, has_stages: bool = True, **others: Any) -> Seen:
    aliases = ({"production": production} if production else {}) | others
    return Seen(aliases, frozenset("1234"), staged, has_stages)


PENDING = row(2, "1", "2", "pending")
HISTORY = [row(1, None, "1"), row(2, "1", "2")]
BY_ALIAS, BY_STAGE = "alias production was changed", "stage Production was set"


@pytest.mark.parametrize(
    ("rows", "found", "expected"),
    [
        ([], seen(None, has_stages=False), None),
        (HISTORY, seen("2", "2"), None),
        ([row(1, None, "1"), PENDING], seen("1", "1"), Settle(PENDING, "applied", move=True)),
        # killed after the alias: the stage lags and must not be taken for a hand's work
        ([row(1, None, "1"), PENDING], seen("2", "1"), Settle(PENDING, "applied", move=False)),
        ([row(1, None, "1"), PENDING], seen("2", "2"), Settle(PENDING, "applied", move=False)),
        ([row(1, None, "1"), PENDING], seen("3", "1"), Settle(PENDING, "superseded", move=False)),
        ([row(1, None, "1"), PENDING], seen(None, "1"), Settle(PENDING, "superseded", move=False)),
        (HISTORY, seen("3", "2"), Record("production", "2", "3", BY_ALIAS)),
        (HISTORY, seen("3", "3"), Record("production", "2", "3", BY_ALIAS)),
        (HISTORY, seen(None, "2"), Record("production", "2", None, BY_ALIAS)),
        ([], seen("1", has_stages=False), Record("production", None, "1", BY_ALIAS)),
        (HISTORY, seen("2", "3", "2"), Record("production", "2", "3", BY_STAGE)),
        (HISTORY, seen("2", "1"), Record("production", "2", "1", BY_STAGE)),
        ([], seen(None, "1"), Record("production", None, "1", BY_STAGE)),
        (HISTORY, seen("2"), Restage("2")),
        (HISTORY, seen("2", has_stages=False), None),
        (HISTORY, seen("2", "2", shadow="3"), Record("shadow", None, "3", "alias shadow was")),
        ([*HISTORY, row(3, "2", "3", "superseded")], seen("2", "2"), None),
    ],
)
def test_the_next_step(rows: list[LedgerRow], found: Seen, expected: Step | None) -> None:
    step = plan_reconcile(rows, found)
    if isinstance(expected, Record):
        assert isinstance(step, Record)
        assert step.why.startswith(expected.why)
        step = Record(step.role, step.from_version, step.to_version, expected.why)
    assert step == expected


def test_a_pending_row_for_a_deleted_version_does_not_block_for_ever() -> None:
    lost = row(2, "1", "9", "pending")
    assert plan_reconcile([HISTORY[0], lost], seen("1", "1")) == Settle(
        lost, "superseded", move=False
    )


def test_going_back_takes_what_came_after_off_the_way_back() -> None:
    steps = [(None, "1"), ("1", "2"), ("2", "3"), ("3", "2")]
    rows = [row(at, *step) for at, step in enumerate(steps, 1)]
    assert history(rows) == ["1", "2"]
    assert history([*rows, row(5, "2", "4"), row(6, "4", "5", "superseded")]) == ["1", "2", "4"]
    assert history([*rows, row(5, None, "4", role="shadow")]) == ["1", "2"]

"""The rules on roles, without MLflow and without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mlflow_server.ledger import LedgerRow
from mlflow_server.roles import (
    TRAFFIC_TAG,
    Deployed,
    can_finish,
    ended,
    explained,
    history,
)

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def row(
    at: int, old: str | None, new: str | None, role: str = "production", **other: Any
) -> Any:
    values = {"percent": 100 if new else 0, "who": "ann", "why": "", "evidence": None}
    change = {"from_version": old, "to_version": new, "time": TIME, "applied_at": TIME}
    return LedgerRow("m", at, role, **{**values, **change, **other})


def deployed(
    production: str | None, traffic: str | None = None, **others: str
) -> Deployed:
    aliases = ({"production": production} if production else {}) | others
    return Deployed(aliases, {TRAFFIC_TAG: traffic} if traffic else {})


HISTORY = [row(1, None, "1"), row(2, "1", "2")]
TRIED = [*HISTORY, row(3, None, "3", "challenger", percent=5)]


@pytest.mark.parametrize(
    ("tag", "percent"),
    [("2:5", 5), ("2:100", 100), ("3:5", 0), ("2:0", 0), ("2:101", 0), ("2:05", 0), ("2:-5", 0),
     ("2:5.0", 0), (" 2:5", 0), ("2:5\n", 0), ("2:\u0665", 0), ("2", 0), (":", 0), ("", 0),
     ("2:5:5", 0), ("5", 0), ("2:five", 0)],
)  # fmt: skip
def test_traffic_counts_if_it_names_the_version_and_a_whole_percent(
    tag: str, percent: int
) -> None:
    assert deployed("1", tag, challenger="2").percent("challenger") == percent
    assert deployed("1", tag).percent("challenger") == 0
    assert deployed("1", challenger="2").percent("challenger") == 0


@pytest.mark.parametrize(
    ("rows", "found", "unexplained"),
    [
        ([], deployed(None), []),
        (HISTORY, deployed("2"), []),
        (HISTORY, deployed("3"), ["production"]),
        (HISTORY, deployed(None), ["production"]),
        ([], deployed("1"), ["production"]),
        ([*HISTORY, row(3, "2", "3", applied_at=None)], deployed("2"), []),
        ([*HISTORY, row(3, "2", "3", applied_at=None)], deployed("3"), ["production"]),
        (HISTORY, deployed("2", shadow="3", challenger="4"), ["challenger", "shadow"]),
        (TRIED, deployed("2", "3:5", challenger="3"), []),
        (TRIED, deployed("2", "3:6", challenger="3"), ["challenger"]),
        (TRIED, deployed("2", challenger="3"), ["challenger"]),
        ([*TRIED, row(4, "3", None, "challenger")], deployed("2", "3:5"), []),
    ],
)
def test_what_the_ledger_does_not_explain(
    rows: list[LedgerRow], found: Deployed, unexplained: list[str]
) -> None:
    roles = ("production", "challenger", "shadow")
    assert [role for role in roles if not explained(rows, found, role)] == unexplained


@pytest.mark.parametrize(
    ("found", "finishes"),
    [
        (deployed("1"), True),
        (deployed("2"), True),
        (deployed("3"), False),
        (deployed(None), False),
    ],
)
def test_a_row_without_a_stamp_is_finished_unless_somebody_moved_the_alias(
    found: Deployed, finishes: bool
) -> None:
    begun = row(2, "1", "2", applied_at=None)
    assert can_finish(begun, found) is finishes
    assert not can_finish(replace(begun, applied_at=TIME), found)


def test_going_back_takes_what_came_after_off_the_way_back() -> None:
    steps = [(None, "1"), ("1", "2"), ("2", "3"), ("3", "2")]
    rows = [row(at, *step) for at, step in enumerate(steps, 1)]
    assert history(rows) == ["1", "2"]
    later = [*rows, row(5, "2", "4"), row(6, "4", "5", applied_at=None)]
    assert history(later) == ["1", "2", "4"]
    assert history([*rows, row(5, None, "4", "shadow")]) == ["1", "2"]


SHADOWED = row(4, None, "4", "shadow")


@pytest.mark.parametrize(
    ("rows", "over"),
    [
        (HISTORY, []),
        (TRIED, []),
        ([*TRIED, row(4, "2", "3")], ["challenger"]),
        ([*TRIED, row(4, "2", "1")], ["challenger"]),
        ([*TRIED, row(4, "2", None)], ["challenger"]),
        ([*TRIED, row(4, "2", "1", applied_at=None)], []),
        ([*TRIED, row(4, "2", "1"), row(5, "3", "4", "challenger", percent=5)], []),
        ([*TRIED, SHADOWED], []),
        ([*TRIED, replace(SHADOWED, to_version="3")], ["shadow"]),
        ([*TRIED, replace(SHADOWED, to_version="2")], ["shadow"]),
        ([*TRIED, replace(SHADOWED, to_version="3"), row(5, "2", "1")], ["challenger"]),
        ([*TRIED, SHADOWED, row(5, "2", "4")], ["challenger", "shadow"]),
        (
            [
                *TRIED,
                SHADOWED,
                row(5, "4", None, "shadow"),
                row(6, "3", None, "challenger"),
            ],
            [],
        ),
    ],
)
def test_which_roles_are_over(rows: list[LedgerRow], over: list[str]) -> None:
    assert [last.role for last, _ in ended(rows)] == over

"""What to do so that ledger and MLflow agree: a pure function of both.

The alias is the truth of what is in a role, the ledger of how it came there. Who changes a role
writes a row `pending`, moves the alias, puts the stages in step and only then marks the row
`applied`. So while a row is pending, a stage that lags is ours and is repaired by settling the
row. Once the last row is applied, stages were in step, and another version in stage Production
can only have been put there by hand: it is an outside promotion, and the alias follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_server.registry import PRODUCTION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_server.ledger import LedgerRow, State

ROLES = (PRODUCTION, "challenger", "shadow")


@dataclass(frozen=True)
class Seen:
    """What MLflow holds of a model."""

    aliases: Mapping[str, str]
    known: frozenset[str]
    """Every version."""
    in_production: tuple[str, ...]
    """Versions in stage Production, the latest changed first."""
    has_stages: bool
    """Whether any version has a stage (a later MLflow may drop them)."""


@dataclass(frozen=True)
class Settle:
    """End a pending row; `move` its alias before, and put the stages in step unless superseded."""

    row: LedgerRow
    state: State
    move: bool


@dataclass(frozen=True)
class Record:
    """Write down a change that was made outside."""

    role: str
    from_version: str | None
    to_version: str | None
    why: str


@dataclass(frozen=True)
class Restage:
    """Give the version in production its stage again."""

    version: str


Step = Settle | Record | Restage


def last_applied(rows: Sequence[LedgerRow], role: str) -> LedgerRow | None:
    """Return the row that put into `role` what the ledger says is there."""
    applied = (row for row in reversed(rows) if row.role == role and row.state == "applied")
    return next(applied, None)


def plan_reconcile(rows: Sequence[LedgerRow], seen: Seen) -> Step | None:
    """Return the next step, None once ledger and MLflow agree. `rows` are the oldest first."""
    for row in rows:
        if row.state == "pending":
            return _settle(row, seen)
    for role in ROLES:
        last = last_applied(rows, role)
        written, alias = last.to_version if last else None, seen.aliases.get(role)
        if written != alias:
            return Record(role, written, alias, f"alias {role} was changed outside Gyre")
    return _stages(seen)


def _settle(row: LedgerRow, seen: Seen) -> Settle:
    alias = seen.aliases.get(row.role)
    gone = row.to_version is not None and row.to_version not in seen.known
    if gone or alias not in {row.from_version, row.to_version}:
        return Settle(row, "superseded", move=False)
    return Settle(row, "applied", move=alias != row.to_version)


def _stages(seen: Seen) -> Record | Restage | None:
    alias = seen.aliases.get(PRODUCTION)
    by_hand = [version for version in seen.in_production if version != alias]
    if by_hand:
        return Record(PRODUCTION, alias, by_hand[0], "stage Production was set outside Gyre")
    if alias and seen.has_stages and alias not in seen.in_production:
        return Restage(alias)
    return None

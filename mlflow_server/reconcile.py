"""What to do so that ledger and MLflow agree: pure functions of both.

The alias is the truth of what is in a role, the ledger of how it came there. Who changes a role
writes a row `pending`, moves the alias, puts the stages in step and only then marks the row
`applied`. So while a row is pending, a stage that lags is ours and is repaired by settling the
row. Once the last row is applied, stages were in step, and another version in stage Production
can only have been put there by hand: it is an outside promotion, and the alias follows. Of
several, each is one, in the order in which they were changed; MLflow does not say when an alias
was moved, so an alias that was moved as well comes before them.

Two roles end by themselves (`over`), because what they stood for is gone. A challenger is tried
against the version in production: its trial is over once production changes, whether the
challenger won, somebody went back, or a third version came. A shadow is over once its version
answers itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_server.ledger import LedgerRow, State
from mlflow_server.registry import CHALLENGER, PRODUCTION, SHADOW
from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

ROLES = (PRODUCTION, CHALLENGER, SHADOW)
OUTSIDE, BY_ITSELF = "outside", "gyre"
"""Who, in the ledger, where it was nobody who asked Gyre."""
WHOLE = 100


@dataclass(frozen=True)
class Seen:
    """What MLflow holds of a model: version by alias, and stage by version ("None" for none)."""

    aliases: Mapping[str, str]
    stages: Mapping[str, str]
    """Every version, the latest changed first."""

    @property
    def in_production(self) -> list[str]:
        return [version for version, stage in self.stages.items() if stage == "Production"]


def last_applied(rows: Sequence[LedgerRow], role: str) -> LedgerRow | None:
    """Return the row that put into `role` what the ledger says is there."""
    applied = (row for row in reversed(rows) if row.role == role and row.state == "applied")
    return next(applied, None)


def next_row(model: str, rows: Sequence[LedgerRow], seen: Seen, time: datetime) -> LedgerRow | None:
    """Return the next row to bring about, None once ledger and MLflow agree.

    A pending row comes back with the state it ends in, a change made outside as a new row, and
    the row of the version in production once more if that has lost its stage. `rows` are the
    oldest first.
    """
    pending = next((row for row in rows if row.state == "pending"), None)
    if pending is not None:
        return replace(pending, state=_end(pending, seen))

    def outside(role: str, old: str | None, new: str | None, why: str) -> LedgerRow:
        # By hand nobody says how many: a challenger answers nobody until somebody does.
        percent = 0 if new is None or role == CHALLENGER else WHOLE
        change = (role, percent, old, new, OUTSIDE, f"{why} outside Gyre", None)
        return LedgerRow(model, len(rows) + 1, *change, "applied", time)

    for role in ROLES:
        last = last_applied(rows, role)
        written, alias = last.to_version if last else None, seen.aliases.get(role)
        if written != alias:
            return outside(role, written, alias, f"alias {role} was changed")
    alias = seen.aliases.get(PRODUCTION)
    by_hand = [version for version in seen.in_production if version != alias]
    if by_hand:
        return outside(PRODUCTION, alias, by_hand[-1], "stage Production was set")
    has_stages = any(stage != "None" for stage in seen.stages.values())  # a later MLflow has none
    lost = alias and has_stages and alias not in seen.in_production
    return last_applied(rows, PRODUCTION) if lost else None


def over(model: str, rows: Sequence[LedgerRow], seen: Seen, time: datetime) -> LedgerRow | None:
    """Return the pending row that ends a role which is over; `rows` and `seen` agree."""
    current, shadow = last_applied(rows, PRODUCTION), seen.aliases.get(SHADOW)
    challenger, began = seen.aliases.get(CHALLENGER), last_applied(rows, CHALLENGER)
    answering = {seen.aliases.get(PRODUCTION): PRODUCTION, challenger: CHALLENGER}
    if challenger and began and current and current.sequence > began.sequence:
        role, why = CHALLENGER, f"its trial is over: production is {named(current.to_version)} now"
    elif shadow and shadow in answering:
        role, why = SHADOW, f"version {shadow} is in role {answering[shadow]} now"
    else:
        return None
    change = (role, 0, seen.aliases[role], None, BY_ITSELF, why, None)
    return LedgerRow(model, len(rows) + 1, *change, "pending", time)


def history(rows: Sequence[LedgerRow]) -> list[str]:
    """Versions that going back passes through, the current one last, none of them twice."""
    stack: list[str] = []
    for row in rows:
        if row.role != PRODUCTION or row.state != "applied" or row.to_version is None:
            continue
        if row.to_version in stack:  # gone back to: what came after it is no way back any more
            del stack[stack.index(row.to_version) + 1 :]
        else:
            stack.append(row.to_version)
    return stack


def check_promotion(rows: Sequence[LedgerRow], seen: Seen, wanted: LedgerRow) -> None:
    """Refuse a row that must not be written. `rows` and `seen` agree."""
    model, role, version = wanted.model, wanted.role, wanted.to_version
    if version is not None and version not in seen.stages:
        known = ", ".join(sorted(seen.stages, key=int)) or "none"
        raise RegistryError(f"{model} has no version {version}: known are {known}")
    current, last = seen.aliases.get(role), last_applied(rows, role)
    won = f" (by {last.who} at {last.time:%Y-%m-%d %H:%M:%S} UTC: {last.why})" if last else ""
    if current != wanted.from_version:
        raise PromotionRefusedError(
            f"{model}: {role} is {named(current)}{won}, not {named(wanted.from_version)}, "
            f"which {named(version)} was to replace"
        )
    if current is None and version is None:
        raise PromotionRefusedError(f"{model}: no version is {role}, nothing to release{won}")
    if current == version and (last is None or last.percent == wanted.percent):
        raise PromotionRefusedError(f"{model}: version {version} is already {role}{won}")
    if version is not None and role != PRODUCTION:
        _check_beside(seen, wanted)


def _check_beside(seen: Seen, wanted: LedgerRow) -> None:
    """Refuse a challenger or shadow that has nothing to stand beside, or answers already."""
    model, role, version = wanted.model, wanted.role, wanted.to_version
    if seen.aliases.get(PRODUCTION) is None:
        raise PromotionRefusedError(
            f"{model}: nothing is in production for a {role} to be compared with: "
            f"gyre promote {model} {version}"
        )
    above = ROLES[: ROLES.index(role)]
    if taken := next((each for each in above if seen.aliases.get(each) == version), None):
        raise PromotionRefusedError(
            f"{model}: version {version} is in role {taken}, and cannot be {role} as well"
        )


def _end(row: LedgerRow, seen: Seen) -> State:
    """Superseded by a hand that moved the alias elsewhere, or by the version's deletion."""
    moved = seen.aliases.get(row.role) not in {row.from_version, row.to_version}
    gone = row.to_version is not None and row.to_version not in seen.stages
    return "superseded" if moved or gone else "applied"


def named(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"

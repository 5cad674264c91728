"""Roles of a model's versions: what MLflow and the ledger say of them, and what may be changed.

MLflow's aliases, and a tag for a challenger's traffic, are the truth of what is in a role; the
ledger says how it came there. Two roles end by themselves: a challenger once production changes,
because it was tried against the version that was there, and a shadow once its version answers.
Pure functions; imports neither MLflow nor SQLAlchemy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mlflow_server.ledger import LedgerRow

PRODUCTION, CHALLENGER, SHADOW = "production", "challenger", "shadow"
ROLES = (PRODUCTION, CHALLENGER, SHADOW)
PREVIOUS = "previous"
"""Alias of the version that a rollback goes back to; it follows production, without rows."""
TRAFFIC_TAG = "challenger_traffic"
"""Tag of the registered model, `VERSION:PERCENT`."""
WHOLE = 100


@dataclass(frozen=True)
class Deployed:
    """Aliases (alias to version) and tags of one registered model."""

    aliases: Mapping[str, str]
    tags: Mapping[str, str]

    def percent(self, role: str) -> int:
        """Return the share of requests that the role's version is asked, 0 without one."""
        version = self.aliases.get(role)
        if version is None:
            return 0
        return challenger_percent(version, self.tags) if role == CHALLENGER else WHOLE


def challenger_percent(version: str, tags: Mapping[str, str]) -> int:
    """Return 1..100, or 0 where the tag is absent, malformed or names another version."""
    match = re.fullmatch(r"([0-9]+):([1-9][0-9]?|100)", tags.get(TRAFFIC_TAG, ""))
    return int(match[2]) if match and match[1] == version else 0


def last_applied(rows: Sequence[LedgerRow], role: str) -> LedgerRow | None:
    """Return the row that put into `role` what the ledger says is there. `rows`: oldest first."""
    applied = (row for row in reversed(rows) if row.role == role and row.applied_at)
    return next(applied, None)


def explained(rows: Sequence[LedgerRow], deployed: Deployed, role: str) -> bool:
    """Whether the ledger has what MLflow has in `role`: version and percent."""
    row = last_applied(rows, role)
    written = (row.to_version, row.percent) if row else (None, 0)
    return written == (deployed.aliases.get(role), deployed.percent(role))


def can_finish(row: LedgerRow, deployed: Deployed) -> bool:
    """Whether a row without a stamp can still be applied: nobody else moved its alias."""
    alias = deployed.aliases.get(row.role)
    return row.applied_at is None and alias in {row.from_version, row.to_version}


def ended(rows: Sequence[LedgerRow]) -> list[tuple[LedgerRow, str]]:
    """Return the rows whose role is over, and why. `rows` agree with MLflow."""
    production, challenger, shadow = (last_applied(rows, role) for role in ROLES)
    answering = {production.to_version: PRODUCTION} if production else {}
    found = []
    if production and challenger and challenger.to_version:
        if production.sequence > challenger.sequence:
            now_there = named(production.to_version)
            found.append((challenger, f"its trial is over: production is {now_there} now"))
        else:
            answering[challenger.to_version] = CHALLENGER
    if shadow and shadow.to_version and (role := answering.get(shadow.to_version)):
        found.append((shadow, f"version {shadow.to_version} is in role {role} now"))
    return found


def ways_back(rows: Sequence[LedgerRow]) -> list[str]:
    """Versions that a rollback may go to, the first choice first."""
    last = last_applied(rows, PRODUCTION)
    return [version for version in reversed(history(rows)) if last and version != last.to_version]


def history(rows: Sequence[LedgerRow]) -> list[str]:
    """Versions that going back passes through, the current one last, none of them twice."""
    stack: list[str] = []
    for row in rows:
        if row.role != PRODUCTION or not row.applied_at or row.to_version is None:
            continue
        if row.to_version in stack:  # gone back to: what came after it is no way back any more
            del stack[stack.index(row.to_version) + 1 :]
        else:
            stack.append(row.to_version)
    return stack


def check_promotion(
    rows: Sequence[LedgerRow], versions: Collection[str], wanted: LedgerRow
) -> None:
    """Refuse a row that must not be written. `rows` agree with MLflow, which has `versions`."""
    model, role, version = wanted.model, wanted.role, wanted.to_version
    if version is not None and version not in versions:
        known = ", ".join(sorted(versions, key=int)) or "none"
        raise RegistryError(f"{model} has no version {version}: known are {known}")
    last = last_applied(rows, role)
    current = last.to_version if last else None
    won = f" (by {last.who} at {last.time:%Y-%m-%d %H:%M:%S} UTC: {last.why})" if last else ""
    if current != wanted.from_version:
        raise PromotionRefusedError(
            f"{model}: {role} is {named(current)}{won}, not {named(wanted.from_version)}, "
            f"which {named(version)} was to replace"
        )
    if current is None and version is None:
        raise PromotionRefusedError(f"{model}: no version is {role}, nothing to release{won}")
    if last and (current, last.percent) == (version, wanted.percent):
        raise PromotionRefusedError(f"{model}: version {version} is already {role}{won}")
    if version is not None and role != PRODUCTION:
        _check_beside(rows, wanted)


def _check_beside(rows: Sequence[LedgerRow], wanted: LedgerRow) -> None:
    """Refuse a challenger or shadow that has nothing to stand beside, or answers already."""
    model, role, version = wanted.model, wanted.role, wanted.to_version
    in_roles = {each: row.to_version for each in ROLES if (row := last_applied(rows, each))}
    if in_roles.get(PRODUCTION) is None:
        raise PromotionRefusedError(
            f"{model}: nothing is in production for a {role} to be compared with: "
            f"gyre promote {model} {version}"
        )
    above = ROLES[: ROLES.index(role)]
    if taken := next((each for each in above if in_roles.get(each) == version), None):
        raise PromotionRefusedError(
            f"{model}: version {version} is in role {taken}, and cannot be {role} as well"
        )


def named(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"

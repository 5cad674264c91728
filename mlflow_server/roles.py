"""The rules on roles. Pure functions, without MLflow and SQLAlchemy: serving's workers import them.

MLflow's aliases, and a tag for a challenger's traffic, are the truth of what is in a role; the
ledger says how it came there. `rows` are those of one model, oldest first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mlflow_server.ledger import LedgerRow

PRODUCTION, CHALLENGER, SHADOW = "production", "challenger", "shadow"
ROLES = (PRODUCTION, CHALLENGER, SHADOW)
PREVIOUS = "previous"
"""Alias of the version that a rollback goes back to; it follows production, without rows."""
TRAFFIC_TAG = "challenger_traffic"
WHOLE = 100


@dataclass(frozen=True)
class Deployed:
    """Aliases (alias to version) and tags of one registered model."""

    aliases: Mapping[str, str]
    tags: Mapping[str, str]

    def percent(self, role: str) -> int:
        """Return the share of requests that the role's version is asked, 0 without one.

        A challenger's is 0 where the tag is absent, malformed or names another version.
        """
        version = self.aliases.get(role)
        if version is None or role != CHALLENGER:
            return WHOLE if version else 0
        match = re.fullmatch(
            r"([0-9]+):([1-9][0-9]?|100)", self.tags.get(TRAFFIC_TAG, "")
        )
        return int(match[2]) if match and match[1] == version else 0


def last_applied(rows: Sequence[LedgerRow], role: str) -> LedgerRow | None:
    """Return the row that put into `role` what the ledger says is there."""
    applied = (row for row in reversed(rows) if row.role == role and row.applied_at)
    return next(applied, None)


def current(rows: Sequence[LedgerRow], role: str) -> str | None:
    """Return the version in `role`, as the ledger has it."""
    row = last_applied(rows, role)
    return row.to_version if row else None


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
    """Return the rows whose role is over, and why.

    A challenger ends once production changes, because it was tried against the version that was
    there; a shadow ends once its version answers.
    """
    production, challenger, shadow = (last_applied(rows, role) for role in ROLES)
    found, answering = [], [production, challenger]
    if production and challenger and production.sequence > challenger.sequence:
        answering = [production]
        if challenger.to_version:
            there = named(production.to_version)
            found.append((challenger, f"its trial is over: production is {there} now"))
    if shadow and shadow.to_version:
        above = [
            row.role for row in answering if row and row.to_version == shadow.to_version
        ]
        shown = named(shadow.to_version)
        found += [(shadow, f"{shown} is in role {role} now") for role in above[-1:]]
    return found


def history(rows: Sequence[LedgerRow]) -> list[str]:
    """Versions that going back passes through, the current one last, none of them twice."""
    stack: list[str] = []
    for row in rows:
        if row.role != PRODUCTION or not row.applied_at or row.to_version is None:
            continue
        # Gone back to: what came after it is no way back any more.
        if row.to_version in stack:
            del stack[stack.index(row.to_version) + 1 :]
        else:
            stack.append(row.to_version)
    return stack


def ways_back(rows: Sequence[LedgerRow]) -> list[str]:
    """Versions that a rollback may go to, the first choice first."""
    return [
        version
        for version in reversed(history(rows))
        if version != current(rows, PRODUCTION)
    ]


def check_role(role: str, percent: int, version: str | None) -> None:
    """Refuse what can be no change of a role; version None ends it."""
    fits = percent == (WHOLE if version else 0)
    if role == CHALLENGER and version:
        fits = 1 <= percent <= WHOLE
    if role not in ROLES or not fits or (role == PRODUCTION and version is None):
        raise PromotionRefusedError(
            f"role must be one of {', '.join(ROLES)}, and percent 100, or of a challenger 1..100 "
            "(0 is gyre release; what is in production goes by gyre rollback, or when another is "
            f"promoted): found {role!r}, {percent!r}"
        )


def check_promotion(
    rows: Sequence[LedgerRow], versions: Collection[str], wanted: LedgerRow
) -> None:
    """Refuse a row that must not be written. `rows` agree with MLflow, which has `versions`."""
    model, role, version = wanted.model, wanted.role, wanted.to_version
    if version is not None and version not in versions:
        known = ", ".join(sorted(versions, key=int)) or "none"
        raise RegistryError(f"{model} has no version {version}: known are {known}")
    last, there = last_applied(rows, role), current(rows, role)
    won = (
        f" (by {last.who} at {last.time:%Y-%m-%d %H:%M:%S} UTC: {last.why})"
        if last
        else ""
    )
    is_beside = version is not None and role != PRODUCTION
    above = ROLES[: ROLES.index(role)] if is_beside else ()
    taken = next((each for each in above if current(rows, each) == version), None)
    if there != wanted.from_version:
        problem = (
            f"{role} is {named(there)}{won}, not {named(wanted.from_version)}, which "
        )
        problem += f"{named(version)} was to replace"
    elif there is None and version is None:
        problem = f"no version is {role}, nothing to release{won}"
    elif last and (there, last.percent) == (version, wanted.percent):
        problem = f"version {version} is already {role}{won}"
    elif is_beside and current(rows, PRODUCTION) is None:
        problem = f"nothing is in production for a {role} to be compared with: "
        problem += f"gyre promote {model} {version}"
    elif taken:
        problem = f"version {version} is in role {taken}, and cannot be {role} as well"
    else:
        return
    raise PromotionRefusedError(f"{model}: {problem}")


def named(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"

"""The rules on roles: which change is allowed, which role is over, and where a rollback goes.

MLflow's aliases, and a tag for a challenger's percent, decide which version is in a role; the
ledger says how it came there. `rows` are the ledger's rows of one model, oldest first.
"""

from collections.abc import Collection, Mapping, Sequence

from core.errors import PromotionRefusedError, RegistryError
from mlflow_server.promotion.ledger import LedgerRow
from mlflow_server.roles import (
    CHALLENGER,
    PRODUCTION,
    PRODUCTION_STAGE,
    ROLES,
    SHADOW,
    WHOLE,
    RoleAssignment,
    version_text,
)


def last_applied(rows: Sequence[LedgerRow], role: str) -> LedgerRow | None:
    """Return the newest applied row of a role: it put the present version there."""
    for row in reversed(rows):
        if row.role == role and row.applied_at:
            return row
    return None


def of_newest_model(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """Return the rows of the present model, without rows of a deleted model of its name."""
    return [row for row in rows if row.created == rows[-1].created]


def current(rows: Sequence[LedgerRow], role: str) -> str | None:
    """Return the version that is in `role` by the ledger."""
    row = last_applied(rows, role)
    return row.to_version if row else None


def explained(rows: Sequence[LedgerRow], assignment: RoleAssignment, role: str) -> bool:
    """Whether the ledger has the version and the percent that MLflow has in `role`."""
    row = last_applied(rows, role)
    percent = row.percent if row else 0
    has_version = current(rows, role) == assignment.aliases.get(role)
    return has_version and percent == assignment.percent(role)


def can_finish(row: LedgerRow, assignment: RoleAssignment) -> bool:
    """Whether a row without a stamp can still be applied: nobody else has moved its alias."""
    alias = assignment.aliases.get(row.role)
    return row.applied_at is None and alias in {row.from_version, row.to_version}


def stage_by_hand(
    rows: Sequence[LedgerRow], assignment: RoleAssignment, stages: Mapping[str, str]
) -> str | None:
    """Return the version that somebody set to stage Production past Gyre; None: nobody did.

    Where the alias differs from the ledger, the alias was changed, and stages follow it.

    Args:
        rows: Rows of the ledger.
        assignment: The model as MLflow has it.
        stages: Stage of each version, the version last that was changed last.

    """
    if not explained(rows, assignment, PRODUCTION):
        return None
    production = assignment.aliases.get(PRODUCTION)
    staged_versions = [
        version
        for version, stage in stages.items()
        if stage == PRODUCTION_STAGE and version != production
    ]
    return staged_versions[-1] if staged_versions else None


def ended_roles(rows: Sequence[LedgerRow]) -> list[tuple[LedgerRow, str]]:
    """Return the rows whose role is over, and why.

    A challenger ends once production changes, because it was tried against the version that was
    there; a shadow ends once its version answers.
    """
    ended_rows = []
    production = last_applied(rows, PRODUCTION)
    challenger = last_applied(rows, CHALLENGER)
    shadow = last_applied(rows, SHADOW)
    if production and challenger and production.sequence > challenger.sequence:
        if challenger.to_version:
            answering = version_text(production.to_version)
            reason = f"its trial is over: production is {answering} now"
            ended_rows.append((challenger, reason))
        challenger = None
    if shadow and shadow.to_version:
        for row in (challenger, production):
            if row and row.to_version == shadow.to_version:
                reason = f"{version_text(shadow.to_version)} is in role {row.role} now"
                return [*ended_rows, (shadow, reason)]
    return ended_rows


def history(rows: Sequence[LedgerRow]) -> list[str]:
    """Return versions that were in production, the present one last, none of them twice.

    If a version comes back, the versions that were promoted after it are dropped.
    """
    stack: list[str] = []
    for row in rows:
        version = row.to_version
        if row.role != PRODUCTION or not row.applied_at or version is None:
            continue
        if version in stack:
            del stack[stack.index(version) + 1 :]
        else:
            stack.append(version)
    return stack


def ways_back(rows: Sequence[LedgerRow]) -> list[str]:
    """Return versions that a rollback may go to, the first choice first."""
    production = current(rows, PRODUCTION)
    return [version for version in reversed(history(rows)) if version != production]


def check_role(role: str, percent: int, version: str | None) -> None:
    """Refuse a change that is wrong for every model; version None ends the role.

    Raises:
        PromotionRefusedError: There is no such role, or it cannot have this percent.

    """
    if version is None:
        fits = role != PRODUCTION and percent == 0
    elif role == CHALLENGER:
        fits = 1 <= percent <= WHOLE
    else:
        fits = percent == WHOLE
    if role not in ROLES or not fits:
        raise PromotionRefusedError(
            f"role must be one of {', '.join(ROLES)}, and percent 100 (of a challenger 1 to 100), "
            f"found {role!r}, {percent!r}. To end a role: gyre release; in production: gyre rollback"
        )


def check_promotion(
    rows: Sequence[LedgerRow], versions: Collection[str], row: LedgerRow
) -> None:
    """Refuse a row that must not be written.

    Args:
        rows: Rows of the ledger; they agree with MLflow.
        versions: All versions that MLflow has of the model.
        row: The row to be written.

    Raises:
        RegistryError: There is no such version.
        PromotionRefusedError: Another version is in the role by now, or this one cannot be in it.

    """
    version = row.to_version
    if version is not None and version not in versions:
        numbers = ", ".join(sorted(versions, key=int)) or "none"
        raise RegistryError(
            f"{row.model} has no version {version}: known are {numbers}"
        )
    problem = _problem(rows, row)
    if problem:
        raise PromotionRefusedError(f"{row.model}: {problem}")


def _problem(rows: Sequence[LedgerRow], row: LedgerRow) -> str | None:
    role = row.role
    version = row.to_version
    last = last_applied(rows, role)
    present = current(rows, role)
    author = ""
    if last:
        author = f" (by {last.who} at {last.time:%Y-%m-%d %H:%M:%S} UTC: {last.why})"
    if present != row.from_version:
        expected = version_text(row.from_version)
        reason = f"not {expected}, which {version_text(version)} was to replace"
        return f"{role} is {version_text(present)}{author}, {reason}"
    if present is None and version is None:
        return f"no version is {role}, nothing to release{author}"
    if last and present == version and last.percent == row.percent:
        return f"version {version} is already {role}{author}"
    if version is None or role == PRODUCTION:
        return None
    return _problem_beside(rows, row)


def _problem_beside(rows: Sequence[LedgerRow], row: LedgerRow) -> str | None:
    """Return why a version cannot be challenger or shadow; None: it can."""
    role = row.role
    version = row.to_version
    if current(rows, PRODUCTION) is None:
        remedy = f"gyre promote {row.model} {version}"
        return f"nothing is in production for a {role} to be compared with: {remedy}"
    for other in ROLES[: ROLES.index(role)]:
        if current(rows, other) == version:
            return f"version {version} is in role {other}, and cannot be {role} as well"
    return None

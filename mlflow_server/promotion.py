"""Promotions: who may change what is in a role, and how that is carried out.

A change is committed by inserting its row `pending`; from then on anybody may carry it out, and
doing so twice is the same as once. Both happen inside `Ledger.exclusive`, one process at a time.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from mlflow_server.ledger import LedgerRow, now
from mlflow_server.reconcile import (
    ROLES,
    Record,
    Restage,
    Seen,
    Settle,
    last_applied,
    plan_reconcile,
)
from mlflow_server.registry import PRODUCTION
from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_server.ledger import Book, Ledger
    from mlflow_server.reconcile import Step
    from mlflow_server.registry import Registry

OUTSIDE = "outside"
MOST_STEPS = 20
"""More than any state needs; a bound, should MLflow not do what it answered."""
WHOLE = 100


class Unset(Enum):
    """The caller names no version to be replaced: the one there when the call starts."""

    UNSET = "unset"


UNSET = Unset.UNSET


def promote(
    registry: Registry,
    ledger: Ledger,
    model: str,
    version: str,
    *,
    who: str,
    why: str,
    replaces: str | Unset | None = UNSET,
    role: str = PRODUCTION,
    percent: int = WHOLE,
    evidence: str | None = None,
) -> LedgerRow:
    """Put `version` into `role` in place of `replaces` (None: of none); return the applied row.

    Raises:
        PromotionRefusedError: another version is in the role by now (the message says who put it
            there), or this one is already there at this percentage, or role or percent is wrong.
        RegistryError: no such version, or MLflow or the database do not answer. If the row was
            written by then it is pending, and the next `reconcile` carries it out.

    """
    if role not in ROLES or not 0 <= percent <= WHOLE:
        raise PromotionRefusedError(
            f"role must be one of {', '.join(ROLES)} and percent lie in 0..100: "
            f"found {role!r}, {percent!r}"
        )
    if isinstance(replaces, Unset):
        replaces = _standing(ledger.rows(model), observe(registry, model), role)
    for _ in range(MOST_STEPS):
        reconcile(registry, ledger, model)
        with ledger.exclusive(model) as book:
            rows, seen = book.rows(model), observe(registry, model)
            if plan_reconcile(rows, seen) is not None:
                continue  # somebody came in between
            check_promotion(
                rows, seen, model, version=version, replaces=replaces, role=role, percent=percent
            )
            wanted = (role, percent, replaces, version, who, why, evidence)
            row = book.append(LedgerRow(model, len(rows) + 1, *wanted, "pending", now()))
            break
    else:
        raise RegistryError(f"{model}: ledger and MLflow do not come to rest: try again")
    return _carried_out(registry, ledger, row)


def rollback(registry: Registry, ledger: Ledger, model: str, *, who: str, why: str) -> LedgerRow:
    """Go back to the version that was in production before; twice goes back further.

    Raises:
        PromotionRefusedError: there is none, or somebody else changed production meanwhile.
        RegistryError: as for `promote`.

    """
    reconcile(registry, ledger, model)
    rows, seen = ledger.rows(model), observe(registry, model)
    current = seen.aliases.get(PRODUCTION)
    before = [v for v in history(rows) if v != current and v in seen.known]
    if not before:
        raise PromotionRefusedError(
            f"{model}: nothing to go back to: no version was in production before {current}"
        )
    return promote(registry, ledger, model, before[-1], who=who, why=why, replaces=current)


def reconcile(registry: Registry, ledger: Ledger, model: str) -> list[LedgerRow]:
    """Make ledger and MLflow agree; return the rows changed or added, in order.

    Cheap and without a lock when they agree already. Any number of processes may do it at once.
    """
    if plan_reconcile(ledger.rows(model), observe(registry, model)) is None:
        return []
    changed: dict[int, LedgerRow] = {}
    with ledger.exclusive(model) as book:
        for _ in range(MOST_STEPS):
            rows, seen = book.rows(model), observe(registry, model)
            step = plan_reconcile(rows, seen)
            if step is None:
                break
            row = _perform(registry, book, model, step, sequence=len(rows) + 1, seen=seen)
            if row is not None:
                changed[row.sequence] = row
    return [changed[sequence] for sequence in sorted(changed)]


def observe(registry: Registry, model: str) -> Seen:
    versions, aliases = registry.versions(model), registry.aliases(model)
    staged = sorted(
        (v for v in versions if v.stage == "Production"), key=lambda v: v.changed, reverse=True
    )
    return Seen(
        aliases=aliases,
        known=frozenset(v.version for v in versions),
        in_production=tuple(v.version for v in staged),
        has_stages=any(v.stage != "None" for v in versions),
    )


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


def check_promotion(
    rows: Sequence[LedgerRow],
    seen: Seen,
    model: str,
    *,
    version: str,
    replaces: str | None,
    role: str,
    percent: int,
) -> None:
    """Refuse what `promote` must not write. `rows` and `seen` agree."""
    if version not in seen.known:
        known = ", ".join(sorted(seen.known, key=int)) or "none"
        raise RegistryError(f"{model} has no version {version}: known are {known}")
    current, last = seen.aliases.get(role), last_applied(rows, role)
    won = f" (by {last.who} at {last.time:%Y-%m-%d %H:%M:%S} UTC: {last.why})" if last else ""
    if current != replaces:
        raise PromotionRefusedError(
            f"{model}: {role} is {_named(current)}{won}, not {_named(replaces)}, "
            f"which version {version} was to replace"
        )
    if current == version and (last is None or last.percent == percent):
        raise PromotionRefusedError(f"{model}: version {version} is already {role}{won}")


def _named(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"


def _standing(rows: Sequence[LedgerRow], seen: Seen, role: str) -> str | None:
    """Return what is in `role`, or on its way there: a pending row is a committed change."""
    step = plan_reconcile(rows, seen)
    if isinstance(step, Settle) and step.row.role == role and step.state == "applied":
        return step.row.to_version
    return seen.aliases.get(role)


def _perform(
    registry: Registry, book: Book, model: str, step: Step, *, sequence: int, seen: Seen
) -> LedgerRow | None:
    """Carry out one step, the ledger last: what is killed on the way is planned again."""
    if isinstance(step, Restage):
        registry.set_stage(model, step.version, "Production")
        return None
    if isinstance(step, Record):
        change = (step.role, WHOLE, step.from_version, step.to_version, OUTSIDE, step.why, None)
        return book.append(LedgerRow(model, sequence, *change, "pending", now()))
    row = step.row
    if step.move and row.to_version is None:
        registry.delete_alias(model, row.role)
    elif step.move and row.to_version is not None:
        registry.set_alias(model, row.role, row.to_version)
    if step.state == "applied" and row.role == PRODUCTION:
        _restage(registry, row, seen)
    return book.settle(row, step.state)


def _restage(registry: Registry, row: LedgerRow, seen: Seen) -> None:
    if row.to_version is not None:
        registry.set_stage(row.model, row.to_version, "Production")  # archives the one before
    for version in seen.in_production if row.to_version is None else ():
        registry.set_stage(row.model, version, "Archived")


def _carried_out(registry: Registry, ledger: Ledger, row: LedgerRow) -> LedgerRow:
    reconcile(registry, ledger, row.model)
    row = ledger.rows(row.model)[row.sequence - 1]
    if row.state == "superseded":
        last = last_applied(ledger.rows(row.model), row.role)
        won = f"version {last.to_version} by {last.who}" if last else "somebody else"
        raise PromotionRefusedError(
            f"{row.model}: {row.role} was changed to {won} while version {row.to_version} "
            "was on its way: look again"
        )
    return row

"""Promotions: who may change what is in a role, and how that is carried out.

A change is committed by inserting its row `pending`; from then on anybody may carry it out, and
doing so twice is the same as once. Both happen inside `Ledger.exclusive`, one process at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_server.ledger import LedgerRow
from mlflow_server.reconcile import (
    ROLES,
    WHOLE,
    Seen,
    check_promotion,
    history,
    last_applied,
    named,
    next_row,
    over,
)
from mlflow_server.registry import CHALLENGER, PRODUCTION
from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from mlflow_server.ledger import Book, Ledger
    from mlflow_server.registry import Registry

MOST_STEPS = 20
"""More than any state needs; a bound, should MLflow not do what it answered."""
UNSET = "*"
"""The caller names no version to be replaced: the one there when the call starts."""


def promote(
    registry: Registry,
    ledger: Ledger,
    model: str,
    version: str,
    *,
    who: str,
    why: str,
    replaces: str | None = UNSET,
    role: str = PRODUCTION,
    percent: int = WHOLE,
    evidence: str | None = None,
) -> LedgerRow:
    """Put `version` into `role` in place of `replaces` (None: of none); return the applied row.

    percent: how many of the requests a challenger answers; the other roles have all of them.

    Raises:
        PromotionRefusedError: another version is in the role by now (the message says who put it
            there), or this one is already there at this percentage, or role or percent is wrong.
        RegistryError: no such version, or MLflow or the database do not answer. If the row was
            written by then it is pending, and the next `reconcile` carries it out.

    """
    fits = 1 <= percent <= WHOLE if role == CHALLENGER else percent == WHOLE
    if role not in ROLES or not fits:
        raise PromotionRefusedError(
            f"role must be one of {', '.join(ROLES)}, and percent 100, or of a challenger 1..100 "
            f"(0 is gyre release): found {role!r}, {percent!r}"
        )
    return _changed(registry, ledger, model, version, role, percent, replaces, who, why, evidence)


def release(
    registry: Registry,
    ledger: Ledger,
    model: str,
    role: str,
    *,
    who: str,
    why: str,
    replaces: str | None = UNSET,
    evidence: str | None = None,
) -> LedgerRow:
    """End a challenger or shadow: its alias goes; return the applied row.

    Raises:
        PromotionRefusedError: no version is in the role, or another than `replaces`; or it is
            production, in which something must be.
        RegistryError: as for `promote`.

    """
    if role not in ROLES or role == PRODUCTION:
        raise PromotionRefusedError(
            f"role must be one of {', '.join(ROLES[1:])}: found {role!r}; what is in production "
            "goes by gyre rollback, or when another is promoted"
        )
    return _changed(registry, ledger, model, None, role, 0, replaces, who, why, evidence)


def rollback(registry: Registry, ledger: Ledger, model: str, *, who: str, why: str) -> LedgerRow:
    """Go back to the version that was in production before; twice goes back further.

    A challenger's trial is over by that, as by any change of production.

    Raises:
        PromotionRefusedError: there is none, or somebody else changed production meanwhile.
        RegistryError: as for `promote`.

    """
    reconcile(registry, ledger, model)
    rows, seen = ledger.rows(model), observe(registry, model)
    current = seen.aliases.get(PRODUCTION)
    before = [v for v in history(rows) if v != current and v in seen.stages]
    if not before:
        raise PromotionRefusedError(
            f"{model}: nothing to go back to: no version was in production before {current}"
        )
    return promote(registry, ledger, model, before[-1], who=who, why=why, replaces=current)


def _changed(
    registry: Registry,
    ledger: Ledger,
    model: str,
    version: str | None,
    role: str,
    percent: int,
    replaces: str | None,
    who: str,
    why: str,
    evidence: str | None,
) -> LedgerRow:
    reconcile(registry, ledger, model)  # a pending row is a committed change: it comes first
    if replaces == UNSET:
        replaces = registry.aliases(model).get(role)
    change = (role, percent, replaces, version, who, why, evidence)
    with ledger.exclusive(model) as book:
        rows, seen = _agreed(registry, ledger, book, model)
        if over(model, rows, seen, ledger.now()):
            raise PromotionRefusedError(f"{model}: production has just changed: look again")
        wanted = LedgerRow(model, len(rows) + 1, *change, "pending", ledger.now())
        check_promotion(rows, seen, wanted)
        book.append(wanted)
    return _carried_out(registry, ledger, wanted)


def reconcile(registry: Registry, ledger: Ledger, model: str) -> list[LedgerRow]:
    """Make ledger and MLflow agree; return the rows changed or added, in order.

    Cheap and without a lock when they agree already. Any number of processes may do it at once.
    """
    changed: dict[int, LedgerRow] = {}
    for _ in range(MOST_STEPS):
        rows, seen = ledger.rows(model), observe(registry, model)
        time = ledger.now()
        if not next_row(model, rows, seen, time) and not over(model, rows, seen, time):
            return [changed[at] for at in sorted(changed)]
        with ledger.exclusive(model) as book:
            before = book.rows(model)
            after, seen = _agreed(registry, ledger, book, model)
            if ended := over(model, after, seen, ledger.now()):
                book.append(ended)  # kept by itself; the next round carries it out
                after.append(ended)
        changed |= {row.sequence: row for row in after if row not in before}
    raise _restless(model)


def observe(registry: Registry, model: str) -> Seen:
    versions = sorted(registry.versions(model), key=lambda v: v.changed, reverse=True)
    return Seen(registry.aliases(model), {v.version: v.stage for v in versions})


def _agreed(
    registry: Registry, ledger: Ledger, book: Book, model: str
) -> tuple[list[LedgerRow], Seen]:
    """Do what is left to do until ledger and MLflow agree; return both."""
    for _ in range(MOST_STEPS):
        rows, seen = book.rows(model), observe(registry, model)
        row = next_row(model, rows, seen, ledger.now())
        if row is None:
            return rows, seen
        _carry_out(registry, row, seen)
        # The ledger last: what is killed on the way is planned again.
        if row.sequence > len(rows):
            book.append(row)
        else:
            book.settle(row)
    raise _restless(model)


def _restless(model: str) -> RegistryError:
    return RegistryError(f"{model}: ledger and MLflow do not come to rest: try again")


def _carry_out(registry: Registry, row: LedgerRow, seen: Seen) -> None:
    """Move the alias, then put the stages in step: of what comes and of what goes, no other.

    What a hand puts into Production meanwhile stays there, and is found next. Of a superseded row
    the stage goes that it may have brought.
    """
    comes, goes, now_there = row.to_version, row.from_version, seen.aliases.get(row.role)
    if row.state == "superseded":
        comes, goes = None, row.to_version
    elif comes is None and now_there is not None:
        registry.delete_alias(row.model, row.role)
    if comes and comes != now_there:
        registry.set_alias(row.model, row.role, comes)
    if row.role != PRODUCTION:
        return
    if comes:
        registry.set_stage(row.model, comes, "Production")
    if goes != comes and goes in seen.in_production:
        registry.set_stage(row.model, goes, "Archived")


def _carried_out(registry: Registry, ledger: Ledger, row: LedgerRow) -> LedgerRow:
    reconcile(registry, ledger, row.model)
    rows = ledger.rows(row.model)
    done = rows[row.sequence - 1]
    if done.state == "superseded":
        last = last_applied(rows, row.role)
        won = f"version {last.to_version} by {last.who}" if last else "somebody else"
        raise PromotionRefusedError(
            f"{row.model}: {row.role} was changed to {won} while {named(row.to_version)} "
            "was on its way: look again"
        )
    return done

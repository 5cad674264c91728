"""Promotions: one at a time, a row in the ledger first, then MLflow, then the row's stamp.

Whoever dies on the way leaves a row without a stamp, the newest. The next `reconcile` finishes it,
unless somebody else has moved the alias or deleted the version: then it stays without a stamp.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.registry import Registry
from mlflow_server.roles import (
    CHALLENGER,
    PREVIOUS,
    PRODUCTION,
    ROLES,
    WHOLE,
    can_finish,
    check_promotion,
    ended,
    explained,
    last_applied,
    ways_back,
)
from stack.errors import PromotionRefusedError, RegistryError

if TYPE_CHECKING:
    from stack.settings import Settings

UNSET = "*"
"""The caller names no version to be replaced: the one there when the call starts."""
OUT_OF_BAND, BY_ITSELF = "out of band", "gyre"
"""Who, in the ledger, where it was nobody who asked Gyre."""


@dataclass(frozen=True)
class AliasChange:
    """What somebody asked MLflow for; version None: to delete the alias."""

    role: str
    version: str | None
    who: str


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
    evidence: what it rests on, such as a run; the same again returns the row of the first time.

    Raises:
        PromotionRefusedError: another version is in the role by now (the message says who put it
            there), or this one is already there at this percentage, or role or percent is wrong.
        RegistryError: no such version, or MLflow or the database do not answer. If the row was
            written by then, the next `reconcile` finishes it.

    """
    fits = 1 <= percent <= WHOLE if role == CHALLENGER else percent == WHOLE
    if role not in ROLES or not fits:
        raise PromotionRefusedError(
            f"role must be one of {', '.join(ROLES)}, and percent 100, or of a challenger 1..100 "
            f"(0 is gyre release): found {role!r}, {percent!r}"
        )
    row = LedgerRow(model, 0, role, percent, replaces, version, who, why, evidence, ledger.now())
    return _changed(registry, ledger, row)


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
    row = LedgerRow(model, 0, role, 0, replaces, None, who, why, evidence, ledger.now())
    return _changed(registry, ledger, row)


def rollback(registry: Registry, ledger: Ledger, model: str, *, who: str, why: str) -> LedgerRow:
    """Go back to the version that was in production before; twice goes back further.

    A challenger's trial is over by that, as by any change of production.

    Raises:
        PromotionRefusedError: there is none, or somebody else changed production meanwhile.
        RegistryError: as for `promote`.

    """
    rows = reconcile(registry, ledger, model)
    last = last_applied(rows, PRODUCTION)
    current = last.to_version if last else None
    there = {each.version for each in registry.versions(model)}
    before = next((version for version in ways_back(rows) if version in there), None)
    if before is None:
        raise PromotionRefusedError(
            f"{model}: nothing to go back to: no version was in production before {current}"
        )
    return promote(registry, ledger, model, before, who=who, why=why, replaces=current)


def reconcile(
    registry: Registry, ledger: Ledger, model: str, change: AliasChange | None = None
) -> list[LedgerRow]:
    """Make ledger and MLflow agree; return the ledger's rows, oldest first.

    change: one just made past Gyre, if it is known; what no row explains otherwise is written down
    as out of band.
    """
    with ledger.exclusive(model):
        return _agreed(registry, ledger, model, change)


def write_down(settings: Settings, model: str, change: AliasChange) -> None:
    """Give a change that was just made in MLflow its row, unless it was Gyre's own.

    Gyre commits its row before it changes the alias, and holds the lock meanwhile.
    """
    if change.role not in ROLES:
        return
    with closing(Ledger(settings)) as ledger:
        rows = [row for row in ledger.rows(model) if row.role == change.role]
        if not rows or rows[-1].to_version != change.version:
            reconcile(Registry(settings), ledger, model, change)


def _changed(registry: Registry, ledger: Ledger, wanted: LedgerRow) -> LedgerRow:
    model, role = wanted.model, wanted.role
    if wanted.from_version == UNSET:
        last = last_applied(reconcile(registry, ledger, model), role)
        wanted = replace(wanted, from_version=last.to_version if last else None)
    with ledger.exclusive(model):
        rows = _agreed(registry, ledger, model)
        last = last_applied(rows, role)
        change = (wanted.to_version, wanted.percent, wanted.evidence)
        if last and wanted.evidence and change == (last.to_version, last.percent, last.evidence):
            return last
        wanted = replace(wanted, sequence=len(rows) + 1, time=ledger.now())
        check_promotion(rows, {each.version for each in registry.versions(model)}, wanted)
        _append(registry, ledger, rows, wanted)
        if rows[-1].applied_at is None:
            raise RegistryError(f"{model}: version {wanted.to_version} was deleted meanwhile")
        return _end_roles(registry, ledger, rows)[wanted.sequence - 1]


def _agreed(
    registry: Registry, ledger: Ledger, model: str, change: AliasChange | None = None
) -> list[LedgerRow]:
    """Finish the newest row, write down what no row explains, end roles that are over."""
    rows, deployed = ledger.rows(model), registry.deployed(model)
    if rows and can_finish(rows[-1], deployed):
        _finish(registry, ledger, rows)
        deployed = registry.deployed(model)
    for role in ROLES:
        if explained(rows, deployed, role):
            continue
        last, version = last_applied(rows, role), deployed.aliases.get(role)
        who, why = OUT_OF_BAND, f"{role} was changed outside Gyre"
        if change and (change.role, change.version) == (role, version):
            who, why = change.who, f"alias {role} {'set' if version else 'deleted'} in MLflow"
        before = last.to_version if last else None
        what = (role, deployed.percent(role), before, version, who, why, None)
        row = LedgerRow(model, len(rows) + 1, *what, ledger.now())
        _append(registry, ledger, rows, row, move_alias=False)
    return _end_roles(registry, ledger, rows)


def _end_roles(registry: Registry, ledger: Ledger, rows: list[LedgerRow]) -> list[LedgerRow]:
    """Take off the aliases of roles that are over; return `rows` with those of their ends."""
    for last, why in ended(rows):
        what = (last.role, 0, last.to_version, None, BY_ITSELF, why, None)
        row = LedgerRow(last.model, len(rows) + 1, *what, ledger.now())
        _append(registry, ledger, rows, row)
    return rows


def _append(
    registry: Registry,
    ledger: Ledger,
    rows: list[LedgerRow],
    row: LedgerRow,
    *,
    move_alias: bool = True,
) -> None:
    ledger.insert(row)
    rows.append(row)
    _finish(registry, ledger, rows, move_alias=move_alias)


def _finish(
    registry: Registry, ledger: Ledger, rows: list[LedgerRow], *, move_alias: bool = True
) -> None:
    """Make MLflow as the newest row says, and stamp it; doing it again changes nothing.

    The row stays without a stamp where MLflow has no such version. A challenger's traffic is set
    first, so that who sees its alias sees how much it answers.
    """
    row = rows[-1]
    model, role, version = row.model, row.role, row.to_version
    if role == CHALLENGER:
        registry.set_traffic(model, version, row.percent)
    if move_alias and not registry.set_alias(model, role, version):
        return
    if role == PRODUCTION:
        back = ways_back([*rows[:-1], replace(row, applied_at=row.time)])
        if not any(registry.set_alias(model, PREVIOUS, earlier) for earlier in back):
            registry.set_alias(model, PREVIOUS, None)
        if row.from_version:
            registry.set_stage(model, row.from_version, "Archived")
        if version:
            registry.set_stage(model, version, "Production")
    rows[-1] = ledger.stamp(row)

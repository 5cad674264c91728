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
        return _Transaction(registry, ledger, ledger.rows(model)).agree(model, change)


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
        transaction = _Transaction(registry, ledger, ledger.rows(model))
        rows = transaction.agree(model)
        last = last_applied(rows, role)
        change = (wanted.to_version, wanted.percent, wanted.evidence)
        if last and wanted.evidence and change == (last.to_version, last.percent, last.evidence):
            return last
        wanted = replace(wanted, sequence=len(rows) + 1, time=ledger.now())
        check_promotion(rows, {each.version for each in registry.versions(model)}, wanted)
        transaction.write(wanted)
        transaction.end_roles()
    applied = rows[wanted.sequence - 1]
    if applied.applied_at is None:
        raise RegistryError(f"{model}: version {wanted.to_version} was deleted meanwhile")
    return applied


@dataclass(frozen=True)
class _Transaction:
    """What happens under the lock of one model; `rows` are kept as the ledger has them."""

    registry: Registry
    ledger: Ledger
    rows: list[LedgerRow]

    def agree(self, model: str, change: AliasChange | None = None) -> list[LedgerRow]:
        """Finish the newest row, write down what no row explains, end roles that are over."""
        deployed = self.registry.deployed(model)
        if self.rows and can_finish(self.rows[-1], deployed):
            self.finish()
            deployed = self.registry.deployed(model)
        for role in ROLES:
            if explained(self.rows, deployed, role):
                continue
            last, version = last_applied(self.rows, role), deployed.aliases.get(role)
            who, why = OUT_OF_BAND, f"{role} was changed outside Gyre"
            if change and (change.role, change.version) == (role, version):
                who, why = change.who, f"alias {role} {'set' if version else 'deleted'} in MLflow"
            before, sequence = last.to_version if last else None, len(self.rows) + 1
            what = (role, deployed.percent(role), before, version, who, why, None)
            self.write(LedgerRow(model, sequence, *what, self.ledger.now()), move_alias=False)
        self.end_roles()
        return self.rows

    def end_roles(self) -> None:
        for last, why in ended(self.rows):
            what = (last.role, 0, last.to_version, None, BY_ITSELF, why, None)
            self.write(LedgerRow(last.model, len(self.rows) + 1, *what, self.ledger.now()))

    def write(self, row: LedgerRow, *, move_alias: bool = True) -> None:
        self.ledger.insert(row)
        self.rows.append(row)
        self.finish(move_alias=move_alias)

    def finish(self, *, move_alias: bool = True) -> None:
        """Make MLflow as the newest row says, and stamp it; doing it again changes nothing.

        The row stays without a stamp where MLflow has no such version. A challenger's traffic is
        set first, so that who sees its alias sees how much it answers.
        """
        row, registry = self.rows[-1], self.registry
        model, role, version = row.model, row.role, row.to_version
        if role == CHALLENGER:
            registry.set_traffic(model, version, row.percent)
        if move_alias and not registry.set_alias(model, role, version):
            return
        if role == PRODUCTION:
            back = ways_back([*self.rows[:-1], replace(row, applied_at=row.time)])
            if not any(registry.set_alias(model, PREVIOUS, earlier) for earlier in back):
                registry.set_alias(model, PREVIOUS, None)
            if row.from_version:
                registry.set_stage(model, row.from_version, "Archived")
            if version:
                registry.set_stage(model, version, "Production")
        self.rows[-1] = self.ledger.stamp(row)

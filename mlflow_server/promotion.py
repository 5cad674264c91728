"""Promotions: one at a time, a row in the ledger first, then MLflow, then the row's stamp.

Whoever dies on the way leaves a row without a stamp, the newest. The next `reconcile` finishes it,
unless somebody else has moved the alias or deleted the version: then it stays without a stamp.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from core.errors import PromotionRefusedError, RegistryError
from core.settings import Settings
from mlflow_server import roles
from mlflow_server.ledger import Ledger, LedgerRow, now
from mlflow_server.registry import Registry
from mlflow_server.roles import CHALLENGER, PRODUCTION, ROLES, WHOLE, current

UNSET = "*"
"""The caller names no version to be replaced: the one there when the call starts."""


def promote(
    registry: Registry,
    ledger: Ledger,
    model: str,
    version: str | None,
    *,
    who: str,
    why: str,
    replaces: str | None = UNSET,
    role: str = PRODUCTION,
    percent: int = WHOLE,
    evidence: str | None = None,
) -> LedgerRow:
    """Put `version` into `role` in place of `replaces` (None: of none); return the applied row.

    percent: share of the requests that a challenger answers; 100 in the other roles.
    evidence: what it rests on, such as a run; the same again returns the row of the first time.

    Raises:
        PromotionRefusedError: role or percent is wrong, this version is there already, or another
            by now: the message says who put it there.
        RegistryError: no such version, or MLflow or the database do not answer. A row that was
            written by then is finished by the next `reconcile`.

    """
    roles.check_role(role, percent, version)
    if replaces == UNSET:
        replaces = current(reconcile(registry, ledger, model), role)
    with ledger.exclusive(model):
        transaction = _Transaction(registry, ledger, model, ledger.rows(model))
        rows = transaction.agree()
        last, wanted = roles.last_applied(rows, role), (version, percent, evidence)
        if (
            last
            and evidence
            and wanted == (last.to_version, last.percent, last.evidence)
        ):
            return last
        change = (role, percent, replaces, version, who, why, evidence, now())
        return transaction.apply(LedgerRow(model, len(rows) + 1, *change))


def release(
    registry: Registry, ledger: Ledger, model: str, role: str, **origin: Any
) -> LedgerRow:
    """End a challenger or shadow: its alias goes. origin: who, why and the like, as `promote`'s."""
    return promote(registry, ledger, model, None, role=role, percent=0, **origin)


def rollback(
    registry: Registry, ledger: Ledger, model: str, *, who: str, why: str
) -> LedgerRow:
    """Go back to the version that was in production before; twice goes back further.

    Raises:
        PromotionRefusedError: there is none, or somebody else changed production meanwhile.

    """
    rows = reconcile(registry, ledger, model)
    there, known = (
        current(rows, PRODUCTION),
        {each.version for each in registry.versions(model)},
    )
    before = next(
        (version for version in roles.ways_back(rows) if version in known), None
    )
    if before is None:
        raise PromotionRefusedError(
            f"{model}: nothing to go back to: no version was in production before {there}"
        )
    return promote(registry, ledger, model, before, who=who, why=why, replaces=there)


def reconcile(
    registry: Registry,
    ledger: Ledger,
    model: str,
    by_hand: tuple[str, str | None, str] | None = None,
) -> list[LedgerRow]:
    """Make ledger and MLflow agree; return the ledger's rows, oldest first.

    by_hand: role, version (None: none) and author of a change just made past Gyre. What no row
    explains otherwise is written down as out of band.
    """
    with ledger.exclusive(model):
        return _Transaction(registry, ledger, model, ledger.rows(model)).agree(by_hand)


def write_down(
    settings: Settings, model: str, role: str, version: str | None, who: str
) -> None:
    """Give a change of an alias that was just made in MLflow its row, unless Gyre has made it.

    Gyre commits its row before it changes the alias, and holds the lock meanwhile.
    """
    if role not in ROLES:
        return
    with closing(Ledger(settings)) as ledger:
        rows = [row for row in ledger.rows(model) if row.role == role]
        if not rows or rows[-1].to_version != version:
            reconcile(Registry(settings), ledger, model, (role, version, who))


@dataclass(frozen=True)
class _Transaction:
    """What happens under the lock of one model; `rows` are kept as the ledger has them."""

    registry: Registry
    ledger: Ledger
    model: str
    rows: list[LedgerRow]

    def agree(
        self, by_hand: tuple[str, str | None, str] | None = None
    ) -> list[LedgerRow]:
        """Finish the newest row, write down what no row explains, end roles that are over."""
        deployed = self.registry.deployed(self.model)
        if self.rows and roles.can_finish(self.rows[-1], deployed):
            self.finish()
            deployed = self.registry.deployed(self.model)
        for role in ROLES:
            if roles.explained(self.rows, deployed, role):
                continue
            version, percent = deployed.aliases.get(role), deployed.percent(role)
            who, why = "out of band", f"{role} was changed outside Gyre"
            if by_hand and by_hand[:2] == (role, version):
                who, why = (
                    by_hand[2],
                    f"alias {role} {'set' if version else 'deleted'} in MLflow",
                )
            self.write(self.row(role, percent, version, who, why), move_alias=False)
        self.end_roles()
        return self.rows

    def apply(self, row: LedgerRow) -> LedgerRow:
        known = {each.version for each in self.registry.versions(self.model)}
        roles.check_promotion(self.rows, known, row)
        self.write(row)
        self.end_roles()
        if (applied := self.rows[row.sequence - 1]).applied_at is None:
            raise RegistryError(
                f"{self.model}: version {row.to_version} was deleted meanwhile"
            )
        return applied

    def end_roles(self) -> None:
        for last, why in roles.ended(self.rows):
            self.write(self.row(last.role, 0, None, "gyre", why))

    def row(
        self, role: str, percent: int, version: str | None, who: str, why: str
    ) -> LedgerRow:
        place = (self.model, len(self.rows) + 1, role, percent)
        return LedgerRow(
            *place, current(self.rows, role), version, who, why, None, now()
        )

    def write(self, row: LedgerRow, *, move_alias: bool = True) -> None:
        self.ledger.insert(row)
        self.rows.append(row)
        self.finish(move_alias=move_alias)

    def finish(self, *, move_alias: bool = True) -> None:
        """Make MLflow as the newest row says, and stamp it; doing it again changes nothing.

        The row stays without a stamp where MLflow has no such version. A challenger's traffic is
        set first, so that who sees its alias sees how much it answers.
        """
        row, registry, model = self.rows[-1], self.registry, self.model
        version = row.to_version
        if row.role == CHALLENGER:
            registry.set_traffic(model, version, row.percent)
        if move_alias and not registry.set_alias(model, row.role, version):
            return
        if row.role == PRODUCTION:
            back = roles.ways_back([*self.rows[:-1], replace(row, applied_at=row.time)])
            if not any(
                registry.set_alias(model, roles.PREVIOUS, earlier) for earlier in back
            ):
                registry.set_alias(model, roles.PREVIOUS, None)
            if version:
                registry.set_stage(model, version, "Production")
            elif row.from_version:
                registry.set_stage(model, row.from_version, "Archived")
        self.rows[-1] = self.ledger.stamp(row)

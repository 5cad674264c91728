"""Promotions: one at a time, a row in the ledger first, then MLflow, then the row's stamp.

A process that dies on the way leaves the newest row without a stamp. The next `reconcile` finishes
it, unless somebody else has moved the alias or deleted the version: then the row stays void.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import PromotionRefusedError, RegistryError
from mlflow_server.api.registry import Registry
from mlflow_server.promotion import rules
from mlflow_server.promotion.ledger import Ledger, LedgerAction, LedgerRow, now
from mlflow_server.promotion.rules import current
from mlflow_server.roles import CHALLENGER, PRODUCTION, ROLES, WHOLE

UNSET = "*"
"""Default of `replaces`: the version that is in the role when the call starts."""
Authors = Mapping[tuple[str, str | None], str]
"""Authors of changes just made in MLflow, by alias and its version (None: deleted)."""


def promote(
    registry: Registry,
    ledger: Ledger,
    model: str,
    version: str | None,
    *,
    who: str,
    why: str,
    action: LedgerAction = "promote",
    replaces: str | None = UNSET,
    role: str = PRODUCTION,
    percent: int = WHOLE,
    evidence: str | None = None,
) -> LedgerRow:
    """Put a version into a role, in place of another.

    Args:
        registry: MLflow's registry.
        ledger: The promotion ledger.
        model: Name of the registered model.
        version: Version that enters the role; None ends the role.
        who: Author, for the ledger.
        why: Reason, for the ledger.
        action: The ledger's word for the change.
        replaces: Version that is expected in the role; None: no version.
        role: One of ROLES.
        percent: Percent of requests that a challenger answers; 100 in the other roles.
        evidence: Ground of the change, such as a run. A repeated call with the same evidence
            changes nothing.

    Returns:
        The applied row; in a repeated call, the row of the first call.

    Raises:
        PromotionRefusedError: Role or percent is wrong, this version is in the role already, or
            another version by now: the message names its author.
        RegistryError: There is no such version, or MLflow or the database does not answer. If a
            row was written by then, the next `reconcile` finishes it.

    """
    rules.check_role(role, percent, version)
    if replaces == UNSET:
        replaces = current(reconcile(registry, ledger, model), role)
    with ledger.exclusive(model):
        transaction = _begin(registry, ledger, model)
        transaction.agree()
        row = transaction.new_row(
            role=role,
            percent=percent,
            from_version=replaces,
            to_version=version,
            who=who,
            why=why,
            evidence=evidence,
            action=action,
        )
        last = rules.last_applied(transaction.rows, role)
        if last and evidence:
            change = (last.to_version, last.percent, last.evidence)
            if change == (version, percent, evidence):
                return last
        return transaction.apply(row)


def release(
    registry: Registry, ledger: Ledger, model: str, role: str, **origin: Any
) -> LedgerRow:
    """End a challenger or shadow: its alias is deleted. origin: See who, why … of `promote`."""
    return promote(
        registry,
        ledger,
        model,
        None,
        role=role,
        percent=0,
        action="release",
        **origin,
    )


def rollback(
    registry: Registry, ledger: Ledger, model: str, **origin: Any
) -> LedgerRow:
    """Go back to the version that was in production before; a second call goes back further.

    origin: See who and why of `promote`.

    Raises:
        PromotionRefusedError: There is no such version, or production changed meanwhile.

    """
    rows = reconcile(registry, ledger, model)
    production = current(rows, PRODUCTION)
    registered = {version.version for version in registry.versions(model)}
    for earlier in rules.ways_back(rows):
        if earlier in registered:
            return promote(
                registry,
                ledger,
                model,
                earlier,
                action="rollback",
                replaces=production,
                **origin,
            )
    raise PromotionRefusedError(
        f"{model}: nothing to go back to: no version was in production before {production}"
    )


def reconcile(
    registry: Registry,
    ledger: Ledger,
    model: str,
    authors: Authors | None = None,
) -> list[LedgerRow]:
    """Make ledger and MLflow agree; return the ledger's rows, oldest first.

    authors: Authors of changes just made past Gyre. Any other change without a row gets the author
    "out of band".
    """
    with ledger.exclusive(model):
        transaction = _begin(registry, ledger, model)
        transaction.agree(authors)
        return transaction.rows


def _begin(registry: Registry, ledger: Ledger, model: str) -> "_Transaction":
    """Read the rows of the model as it is registered now, under its lock."""
    created = registry.assignment(model).created
    rows = ledger.rows(model, created)
    return _Transaction(registry, ledger, model, created, rows)


@dataclass(frozen=True)
class _Transaction:
    """Changes of one model under its lock; `rows` has the ledger's rows at any moment.

    created: Time of the model's registration; all `rows` are of this model.
    """

    registry: Registry
    ledger: Ledger
    model: str
    created: int
    rows: list[LedgerRow]

    def new_row(self, **change: Any) -> LedgerRow:
        """Return the next row. change: Its values except for model, created, sequence and time."""
        return LedgerRow(
            model=self.model,
            created=self.created,
            sequence=self.ledger.next_sequence(self.model),
            time=now(),
            **change,
        )

    def agree(self, authors: Authors | None = None) -> None:
        """Finish the newest row, write rows about changes past Gyre, end roles that are over."""
        assignment = self.registry.assignment(self.model)
        if self.rows and rules.can_finish(self.rows[-1], assignment):
            self.finish()
            assignment = self.registry.assignment(self.model)
        for role in ROLES:
            if rules.explained(self.rows, assignment, role):
                continue
            version = assignment.aliases.get(role)
            author = (authors or {}).get((role, version))
            reason = f"{role} was changed outside Gyre"
            if author:
                reason = f"alias {role} {'set' if version else 'deleted'} in MLflow"
            row = self.new_row(
                role=role,
                percent=assignment.percent(role),
                from_version=current(self.rows, role),
                to_version=version,
                who=author or "out of band",
                why=reason,
                evidence=None,
                action="by hand",
            )
            self.write(row, move_alias=False)
        self.end_roles()

    def apply(self, row: LedgerRow) -> LedgerRow:
        """Check a row, write it and change MLflow by it; return it with its stamp."""
        registered = {version.version for version in self.registry.versions(self.model)}
        rules.check_promotion(self.rows, registered, row)
        applied = self.write(row)
        self.end_roles()
        if applied.applied_at is None:
            problem = f"version {row.to_version} was deleted meanwhile"
            raise RegistryError(f"{self.model}: {problem}")
        return applied

    def end_roles(self) -> None:
        """Release every role that is over."""
        for last, reason in rules.ended_roles(self.rows):
            row = self.new_row(
                role=last.role,
                percent=0,
                from_version=last.to_version,
                to_version=None,
                who="gyre",
                why=reason,
                evidence=None,
                action="release",
            )
            self.write(row)

    def write(self, row: LedgerRow, *, move_alias: bool = True) -> LedgerRow:
        """Commit the row, then finish it; return it, with a stamp if it is applied."""
        self.ledger.insert(row)
        self.rows.append(row)
        self.finish(move_alias=move_alias)
        return self.rows[-1]

    def finish(self, *, move_alias: bool = True) -> None:
        """Change MLflow by the newest row, and stamp the row. It may be repeated.

        The row stays without a stamp if MLflow has no such version. A challenger's percent is set
        first, so that a reader of its alias finds the percent.
        """
        row = self.rows[-1]
        version = row.to_version
        if row.role == CHALLENGER:
            self.registry.set_traffic(self.model, version, row.percent)
        if move_alias and not self.registry.set_alias(self.model, row.role, version):
            return
        if row.role == PRODUCTION and version:
            self.registry.set_stage(self.model, version, "Production")
        elif row.role == PRODUCTION and row.from_version:
            self.registry.set_stage(self.model, row.from_version, "Archived")
        self.rows[-1] = self.ledger.stamp(row)

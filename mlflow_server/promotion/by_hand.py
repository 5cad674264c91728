"""Rows about roles that a person has just changed in MLflow, past Gyre."""

from collections.abc import Mapping

from core.settings import Settings
from mlflow_server.api.registry import Registry
from mlflow_server.promotion import rules
from mlflow_server.promotion.ledger import Ledger, LedgerRow, now
from mlflow_server.promotion.promote import reconcile
from mlflow_server.promotion.rules import current
from mlflow_server.roles import CHALLENGER, ROLES, traffic_text


def write_down(
    settings: Settings,
    model: str,
    versions: Mapping[str, str | None] | None,
    author: str,
) -> None:
    """Write rows about roles that were just changed in MLflow, unless Gyre changed them.

    Gyre commits its row before it changes the alias, and holds the lock meanwhile.

    Args:
        settings: Settings of the installation.
        model: Name of the model.
        versions: Version of each alias that was changed; its value is None if no version has it any
            more. None: the model has a new name, and its roles with it.
        author: Author of the change.

    Raises:
        RegistryError: MLflow or the database does not answer.

    """
    registry = Registry(settings)
    assignment = registry.assignment(model)
    if versions is None:
        versions = assignment.versions
    roles = {role: versions[role] for role in ROLES if role in versions}
    with Ledger(settings) as ledger:
        rows = ledger.rows(model, assignment.created)
        ledger_versions = {row.role: row.to_version for row in rows}
        if any(ledger_versions.get(role) != roles[role] for role in roles):
            authors = dict.fromkeys(roles.items(), author)
            reconcile(registry, ledger, model, authors)


def write_down_traffic(
    settings: Settings, model: str, traffic: str | None, author: str
) -> None:
    """Write a row about the challenger's percent that was just changed in MLflow.

    Args:
        settings: Settings of the installation.
        model: Name of the model.
        traffic: Value that TRAFFIC_TAG has now; None: it was deleted. Gyre gives it the percent of
            its newest row.
        author: Author of the change.

    Raises:
        RegistryError: MLflow or the database does not answer.

    """
    registry = Registry(settings)
    assignment = registry.assignment(model)
    with Ledger(settings) as ledger:
        own_traffic = None
        for row in ledger.rows(model, assignment.created):
            if row.role == CHALLENGER:
                own_traffic = traffic_text(row.to_version, row.percent)
        if traffic != own_traffic:
            challenger = assignment.aliases.get(CHALLENGER)
            reconcile(registry, ledger, model, {(CHALLENGER, challenger): author})


def write_down_removal(settings: Settings, model: str, author: str) -> None:
    """Write rows that a model has no roles any more: it was deleted, or has another name.

    Raises:
        RegistryError: MLflow or the database does not answer.

    """
    registry = Registry(settings)
    with Ledger(settings) as ledger, ledger.exclusive(model):
        rows = ledger.rows(model)
        if not rows or registry.assignment(model).created == rows[-1].created:
            return
        rows = rules.of_newest_model(rows)
        for role in ROLES:
            version = current(rows, role)
            if version is None:
                continue
            row = LedgerRow(
                model=model,
                created=rows[-1].created,
                sequence=ledger.next_sequence(model),
                time=now(),
                role=role,
                percent=0,
                from_version=version,
                to_version=None,
                who=author,
                why="model deleted or renamed in MLflow",
                evidence=None,
                action="by hand",
            )
            ledger.insert(row)
            ledger.stamp(row)

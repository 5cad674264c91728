"""A stage set in MLflow acts: Production promotes, and a version in a role keeps its stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import PromotionRefusedError
from core.settings import Settings
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.promotion import promote
from mlflow_server.registry import Registry
from mlflow_server.roles import PRODUCTION, ROLES

STAGING = "Staging"
PRODUCTION_STAGE = "Production"
ARCHIVED = "Archived"


@dataclass(frozen=True)
class StageChange:
    """A stage that somebody sets in MLflow; `stage` is spelt as MLflow spells it."""

    model: str
    version: str
    stage: str
    author: str


def change_stage(
    settings: Settings, change: StageChange, set_in_mlflow: Callable[[], Any]
) -> Any:
    """Promote what is to be in Production, refuse what contradicts a role, then set the stage.

    Args:
        settings: Settings of the installation.
        change: The stage that is asked for.
        set_in_mlflow: Sets it in MLflow, and returns MLflow's answer.

    Returns:
        The answer of `set_in_mlflow`.

    Raises:
        PromotionRefusedError: The version holds a role, its files are damaged, or somebody else
            changed production meanwhile.
        RegistryError: There is no such version, or MLflow or the database do not answer.

    """
    if change.stage == STAGING:
        return set_in_mlflow()
    registry = Registry(settings)
    with Ledger(settings) as ledger:
        if is_by_gyre(ledger.rows(change.model), change):
            return set_in_mlflow()
        if change.stage == PRODUCTION_STAGE:
            _promote(registry, ledger, change)
        # A promotion between check and change would leave a stage that contradicts the alias.
        with ledger.exclusive(change.model):
            check_stage(registry.aliases(change.model), change)
            return set_in_mlflow()


def is_by_gyre(rows: Sequence[LedgerRow], change: StageChange) -> bool:
    """Whether a promotion sets the stage: its row has no stamp before MLflow is done.

    Args:
        rows: The model's ledger, oldest first.
        change: The stage that is asked for.

    """
    if not rows:
        return False
    newest = rows[-1]
    if newest.role != PRODUCTION or newest.applied_at is not None:
        return False
    if newest.to_version is None:
        return (change.version, change.stage) == (newest.from_version, ARCHIVED)
    return (change.version, change.stage) == (newest.to_version, PRODUCTION_STAGE)


def check_stage(aliases: Mapping[str, str], change: StageChange) -> None:
    """Refuse a stage that contradicts the roles of its version.

    Args:
        aliases: The model's versions by alias.
        change: The stage that is asked for.

    Raises:
        PromotionRefusedError: It does; the message names the remedy.

    """
    roles = [role for role in ROLES if aliases.get(role) == change.version]
    version = f"{change.model}: version {change.version}"
    if change.stage == PRODUCTION_STAGE:
        if PRODUCTION not in roles:
            problem = "is not in production any more: set its stage again"
            raise PromotionRefusedError(f"{version} {problem}")
    elif roles:
        role = roles[0]
        remedy = f"gyre release {change.model} --role {role} --reason WHY"
        if role == PRODUCTION:
            remedy = f"gyre rollback {change.model} --reason WHY, or promote another"
        problem = f"is {role}, so it cannot be in stage {change.stage}: {remedy}"
        raise PromotionRefusedError(f"{version} {problem}")


def _promote(registry: Registry, ledger: Ledger, change: StageChange) -> None:
    """Do what `gyre promote` does, unless the version is in production."""
    model = change.model
    if registry.production(model) == change.version:
        return
    damage = registry.damage(model, change.version)
    if damage:
        problem = f"version {change.version} is damaged: {damage}"
        remedy = f"gyre train {model} registers another"
        raise PromotionRefusedError(f"{model}: {problem}: {remedy}")
    promote(
        registry,
        ledger,
        model,
        change.version,
        who=change.author,
        why=f"stage {PRODUCTION_STAGE} set in MLflow",
        action="by stage",
    )

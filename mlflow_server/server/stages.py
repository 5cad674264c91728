"""Stages that people set in MLflow: Production promotes, and a version in a role keeps its stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.errors import PromotionRefusedError
from core.settings import Settings
from core.spec import MODELS
from mlflow_server.api.registry import Registry
from mlflow_server.manifest import CONTRACT_FILE, DIGEST_TAG
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.promote import promote
from mlflow_server.roles import PRODUCTION, PRODUCTION_STAGE, ROLES


def change_stage(
    settings: Settings,
    model: str,
    version: str,
    stage: str,
    author: str,
    set_in_mlflow: Callable[[], Any],
) -> Any:
    """Promote a version set to Production, refuse a stage against a role, then set the stage.

    Args:
        settings: Settings of the installation.
        model: Name of the model.
        version: Version whose stage a person sets in MLflow.
        stage: The stage, as MLflow spells it.
        author: Author of the change.
        set_in_mlflow: Sets the stage in MLflow, and returns MLflow's answer.

    Returns:
        The answer of `set_in_mlflow`.

    Raises:
        PromotionRefusedError: The version has a role, its files are damaged, or production changed
            meanwhile.
        RegistryError: There is no such version, or MLflow or the database does not answer.

    """
    registry = Registry(settings)
    if stage == "Staging" or not is_ours(registry, model, version):
        return set_in_mlflow()
    with Ledger(settings) as ledger:
        if is_by_gyre(ledger.rows(model), version, stage):
            return set_in_mlflow()
        if stage == PRODUCTION_STAGE and registry.production(model) != version:
            promote_by_stage(registry, ledger, model, version, author)
        # A promotion between check and change would leave a stage that contradicts the alias.
        with ledger.exclusive(model):
            problem = contradiction(model, registry.aliases(model), version, stage)
            if problem:
                raise PromotionRefusedError(f"{model}: version {version} {problem}")
            return set_in_mlflow()


def promote_by_stage(
    registry: Registry, ledger: Ledger, model: str, version: str, author: str
) -> None:
    """Promote a version whose stage the author set to Production.

    Raises:
        PromotionRefusedError: Its files are damaged, or production changed meanwhile.
        RegistryError: There is no such version, or MLflow or the database does not answer.

    """
    damage = registry.damage(model, version)
    if damage:
        problem = f"version {version} is damaged: {damage}"
        remedy = f"gyre train {model} registers another"
        raise PromotionRefusedError(f"{model}: {problem}: {remedy}")
    promote(
        registry,
        ledger,
        model,
        version,
        who=author,
        why=f"stage {PRODUCTION_STAGE} set in MLflow",
        action="by stage",
    )


def is_ours(registry: Registry, model: str, version: str) -> bool:
    """Whether Gyre has the version: its model has a spec, or a training of ours registered it.

    MLflow answers for a version that it does not have, such as a deleted one.
    """
    if (MODELS / f"{model}.toml").is_file():
        return True
    contract = DIGEST_TAG + CONTRACT_FILE
    return any(
        contract in registered.tags
        for registered in registry.versions(model)
        if registered.version == version
    )


def is_by_gyre(rows: Sequence[LedgerRow], version: str, stage: str) -> bool:
    """Whether a promotion sets the stage: its row has no stamp until MLflow has answered.

    Args:
        rows: Rows of the model in the ledger, oldest first.
        version: Version whose stage is set.
        stage: The new stage.

    """
    if not rows:
        return False
    newest = rows[-1]
    if newest.role != PRODUCTION or newest.applied_at is not None:
        return False
    if newest.to_version is None:
        return (version, stage) == (newest.from_version, "Archived")
    return (version, stage) == (newest.to_version, PRODUCTION_STAGE)


def contradiction(
    model: str, aliases: Mapping[str, str], version: str, stage: str
) -> str:
    """Return how a stage contradicts its version's roles, and the remedy; empty: it does not."""
    roles = [role for role in ROLES if aliases.get(role) == version]
    if stage == PRODUCTION_STAGE:
        is_promoted = PRODUCTION in roles
        return (
            "" if is_promoted else "is not in production any more: set its stage again"
        )
    if not roles:
        return ""
    role = roles[0]
    remedy = f"gyre release {model} --role {role} --reason WHY"
    if role == PRODUCTION:
        remedy = f"gyre rollback {model} --reason WHY, or promote another"
    return f"is {role}, so it cannot be in stage {stage}: {remedy}"

"""What MLflow's registry says of all models in one answer: who holds a role."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlflow_server.roles import Deployed

Role = Literal["production", "challenger", "shadow", "previous"]
ROLES: tuple[Role, ...] = get_args(Role)
SEARCH = "/api/2.0/mlflow/registered-models/search?max_results=1000"


@dataclass(frozen=True)
class RegisteredModel:
    """Versions by role; created: when the model was made, milliseconds since 1970.

    percent: the share of entities that the challenger answers for.
    """

    created: int
    versions: dict[Role, str]
    percent: int = 0


def registered_models(answer: dict[str, Any]) -> dict[str, RegisteredModel]:
    """Read the answer of `registered-models/search`, by the name of the model."""
    return {row["name"]: _model(row) for row in answer.get("registered_models", [])}


def _model(row: dict[str, Any]) -> RegisteredModel:
    aliases = {alias["alias"]: str(alias["version"]) for alias in row.get("aliases", [])}
    tags = {tag["key"]: tag.get("value", "") for tag in row.get("tags", [])}
    versions = {role: aliases[role] for role in ROLES if role in aliases}
    percent = Deployed(aliases, tags).percent("challenger")
    return RegisteredModel(int(row["creation_timestamp"]), versions, percent)

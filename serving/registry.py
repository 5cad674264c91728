"""What MLflow's registry says of the versions that serving follows."""

from dataclasses import dataclass
from typing import get_args

from core.settings import Settings
from mlflow_server.registry import Registry, deployed_of
from mlflow_server.served_model import DIGEST_TAG
from serving.copies import Origin, Role


@dataclass(frozen=True)
class RegisteredModel:
    """One model, as the registry has it now.

    Attributes:
        created: Milliseconds since 1970.
        versions: By role, production first.
        percent: Share of the entities that the challenger answers.

    """

    created: int
    versions: dict[Role, str]
    percent: int = 0


def read_registry(settings: Settings) -> dict[str, RegisteredModel]:
    """Return every registered model by its name.

    Raises:
        RegistryError: MLflow does not answer.

    """
    models = {}
    for model in Registry(settings).models():
        deployed = deployed_of(model)
        aliases = deployed.aliases
        roles: tuple[Role, ...] = get_args(Role)
        versions = {role: aliases[role] for role in roles if role in aliases}
        models[model["name"]] = RegisteredModel(
            created=int(model["creation_timestamp"]),
            versions=versions,
            percent=deployed.percent("challenger"),
        )
    return models


def read_origin(settings: Settings, model: str, version: str, created: int) -> Origin:
    """Return what MLflow says of a version of the model that was registered at `created`.

    Raises:
        RegistryError: MLflow does not answer.

    """
    tags = Registry(settings).version(model, version).tags
    names = [name for name in tags if name.startswith(DIGEST_TAG)]
    return Origin(created=created, digests={name: tags[name] for name in names})

"""MLflow's model registry, in our own small types. Decides nothing."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.artifacts import download_artifacts

from mlflow_server.connection import GONE, MISSING, client, translated
from mlflow_server.roles import CHALLENGER, PRODUCTION, ROLES, SHADOW, TRAFFIC_TAG, Deployed
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, ServedModel, wrong_files
from stack.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stack.settings import Settings

__all__ = ["CHALLENGER", "PRODUCTION", "SHADOW", "Registry", "Version"]
PLACES = (ONNX_FILE, f"extra_files/{CONTRACT_FILE}")
"""Where the served files lie below the version's artifact folder (MLflow's own layout)."""
MOST = 100_000
"""Versions asked for at once; MLflow's own bound is 200,000."""


@dataclass(frozen=True)
class Version:
    """One registered version; `version` is MLflow's number as text."""

    model: str
    version: str
    run_id: str
    tags: dict[str, str]


class Registry:
    """Aliases, stages, versions and files of the registered models.

    Every call ends within 5 s per request and raises RegistryError, in one line, when MLflow
    does not answer or refuses. Safe to share between threads.
    """

    def __init__(self, settings: Settings) -> None:
        self._address = settings.mlflow_address
        self._client = client(settings)

    def production(self, model: str) -> str | None:
        """Version that the alias `production` names; None without one or without the model."""
        return self.aliases(model).get(PRODUCTION)

    def aliases(self, model: str) -> Mapping[str, str]:
        """Versions by alias; empty for a model that does not exist."""
        return self.deployed(model).aliases

    def deployed(self, model: str) -> Deployed:
        """Aliases and tags of the model; empty for one that does not exist."""
        named = f"name = '{model}'"
        with translated(f"aliases of {model}"):
            for found in self._client.search_registered_models(named, max_results=1):
                aliases = {alias: str(version) for alias, version in found.aliases.items()}
                return Deployed(aliases, dict(found.tags))
        return Deployed({}, {})

    def version(self, model: str, version: str) -> Version:
        with translated(f"version {version} of {model}"):
            return _version(self._client.get_model_version(model, version))

    def versions(self, model: str) -> list[Version]:
        """Every version, oldest first; empty for a model that does not exist."""
        with translated(f"versions of {model}"):
            found = self._client.search_model_versions(f"name = '{model}'", max_results=MOST)
        return sorted(map(_version, found), key=lambda version: int(version.version))

    def in_roles(self, model: str) -> list[tuple[str, Version]]:
        """Return each role of `model` that an alias names a version for, with the version."""
        aliases = self.aliases(model)
        return [(role, self.version(model, aliases[role])) for role in ROLES if role in aliases]

    def tags(self) -> list[dict[str, str]]:
        """Tags of every version of every model."""
        with translated("versions of all models"):
            return [dict(v.tags) for v in self._client.search_model_versions(max_results=MOST)]

    def download(self, version: Version, folder: Path) -> None:
        """Put the served files into `folder`; unverified, see `served_model.wrong_files`."""
        what = f"files of version {version.version} of {version.model}"
        with translated(what):
            uri = self._client.get_model_version_download_uri(version.model, version.version)
        self.download_from(uri, folder, what)

    def download_from(self, uri: str, folder: Path, what: str) -> None:
        """Put the served files of the logged model at `uri` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        at = {"tracking_uri": self._address, "registry_uri": self._address}
        with translated(what):
            for place in PLACES:
                download_artifacts(artifact_uri=f"{uri}/{place}", dst_path=str(folder), **at)

    def download_extra(self, version: Version, names: Iterable[str], folder: Path) -> None:
        """Put files that were registered beside the served ones into `folder`; unverified."""
        what = f"files of version {version.version} of {version.model}"
        at = {"tracking_uri": self._address, "registry_uri": self._address}
        with translated(what):
            uri = self._client.get_model_version_download_uri(version.model, version.version)
            for name in names:
                download_artifacts(
                    artifact_uri=f"{uri}/extra_files/{name}", dst_path=str(folder), **at
                )

    def served(self, version: Version) -> tuple[ServedModel, bytes]:
        """Contract and ONNX file of `version`, once they are those registered."""
        with tempfile.TemporaryDirectory(prefix="gyre-") as name:
            folder = Path(name)
            self.download(version, folder)
            if wrong := wrong_files(folder, version.tags):
                what = f"version {version.version} of {version.model}"
                raise RegistryError(f"{what} is damaged: {'; '.join(wrong)}")
            found = ServedModel.model_validate_json((folder / CONTRACT_FILE).read_bytes())
            return found, (folder / ONNX_FILE).read_bytes()

    def damage(self, model: str, version: str) -> str:
        """Say which served files are not those registered; empty if all are."""
        found = self.version(model, version)
        with tempfile.TemporaryDirectory(prefix="gyre-") as name:
            self.download(found, Path(name))
            return "; ".join(wrong_files(Path(name), found.tags))

    def set_alias(self, model: str, role: str, version: str | None) -> bool:
        """Let the alias name `version` (None: delete it); False where there is no such version."""
        what = f"alias {role} of {model}"
        if version is None:
            with translated(f"delete {what}"):
                self._client.delete_registered_model_alias(model, role)
            return True
        with translated(f"set {what} to {version}", unless=MISSING):
            self._client.set_registered_model_alias(model, role, version)
            return True
        return False

    def set_traffic(self, model: str, version: str | None, percent: int) -> None:
        """Let challenger `version` answer `percent` of the requests; 0 takes the tag off."""
        with translated(f"traffic of challenger {version} of {model}"):
            if percent:
                self._client.set_registered_model_tag(model, TRAFFIC_TAG, f"{version}:{percent}")
            else:
                self._client.delete_registered_model_tag(model, TRAFFIC_TAG)

    def set_stage(self, model: str, version: str, stage: str) -> None:
        """Write the stage, for those who read it; nothing where version or stages do not exist."""
        what = f"stage {stage} for version {version}"
        with warnings.catch_warnings(), translated(what, unless=GONE | MISSING):
            warnings.simplefilter("ignore", FutureWarning)  # deprecated
            self._client.transition_model_version_stage(model, version, stage)


def _version(found: Any) -> Version:
    return Version(
        model=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        tags=dict(found.tags),
    )

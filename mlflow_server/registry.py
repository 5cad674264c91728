"""MLflow's model registry, in our own small types. Decides nothing."""

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow.artifacts import download_artifacts

from core.errors import RegistryError
from core.settings import Settings
from mlflow_server.connection import GONE, MISSING, client, translated
from mlflow_server.pyfunc import ModelFile, read_file
from mlflow_server.rest import Version
from mlflow_server.roles import CHALLENGER, PRODUCTION, SHADOW, TRAFFIC_TAG, Deployed
from mlflow_server.served_model import (
    CONTRACT_FILE,
    ServedModel,
    served_files,
    wrong_files,
)
from mlflow_server.version_tags import unpacked

__all__ = ["CHALLENGER", "PRODUCTION", "SHADOW", "Registry", "Version"]
FORGOTTEN_TAG = "forgotten"
MOST = 100_000
"""Versions asked for at once; MLflow's own bound is 200,000."""


class Registry:
    """Aliases, stages, versions and files of the registered models; threads may share it.

    Every method raises RegistryError, in one line, when MLflow refuses or is silent for 5 s.
    """

    def __init__(self, settings: Settings) -> None:
        self._address = settings.mlflow_address
        self._client = client(settings)

    def production(self, model: str) -> str | None:
        return self.aliases(model).get(PRODUCTION)

    def aliases(self, model: str) -> Mapping[str, str]:
        """Versions by alias; empty for a model that does not exist."""
        return self.deployed(model).aliases

    def deployed(self, model: str) -> Deployed:
        """Aliases and tags of the model; empty for one that does not exist."""
        with translated(f"aliases of {model}"):
            found = self._client.search_registered_models(
                f"name = '{model}'", max_results=1
            )
        if not found:
            return Deployed({}, {})
        aliases = {alias: str(version) for alias, version in found[0].aliases.items()}
        return Deployed(aliases, dict(found[0].tags))

    def version(self, model: str, version: str) -> Version:
        with translated(f"version {version} of {model}"):
            return _version(self._client.get_model_version(model, version))

    def versions(self, model: str) -> list[Version]:
        """Every version, oldest first; empty for a model that does not exist."""
        with translated(f"versions of {model}"):
            found = self._client.search_model_versions(
                f"name = '{model}'", max_results=MOST
            )
        return sorted(map(_version, found), key=lambda version: int(version.version))

    def download(
        self, version: Version, folder: Path, places: Iterable[str] = ()
    ) -> None:
        """Put files into `folder`, by default the served ones; unverified, see `wrong_files`."""
        places = places or served_files(version.tags).values()
        what = f"files of version {version.version} of {version.model}"
        with translated(what):
            uri = self._client.get_model_version_download_uri(
                version.model, version.version
            )
        self.download_from(uri, folder, what, places)

    def download_from(
        self, uri: str, folder: Path, what: str, places: Iterable[str]
    ) -> None:
        """Put files of the logged model at `uri` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        at = {"tracking_uri": self._address, "registry_uri": self._address}
        with translated(what):
            for place in places:
                download_artifacts(
                    artifact_uri=f"{uri}/{place}", dst_path=str(folder), **at
                )

    def served(
        self, version: Version, trusted: tuple[str, ...] = ()
    ) -> tuple[ServedModel, ModelFile]:
        """Contract and model of `version`, as registered. trusted: the spec's, to score with it."""
        with tempfile.TemporaryDirectory(prefix="gyre-") as name:
            folder = Path(name)
            self.download(version, folder)
            if wrong := "; ".join(wrong_files(folder, version.tags)):
                what = f"version {version.version} of {version.model}"
                raise RegistryError(f"{what} is damaged: {wrong}")
            contract = ServedModel.model_validate_json(
                (folder / CONTRACT_FILE).read_bytes()
            )
            return contract, read_file(folder, contract, trusted)

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
                self._client.set_registered_model_tag(
                    model, TRAFFIC_TAG, f"{version}:{percent}"
                )
            else:
                self._client.delete_registered_model_tag(model, TRAFFIC_TAG)

    def mark_forgotten(self, version: Version, day: str) -> None:
        """Note on which day rows of the version's training frame were forgotten."""
        with translated(f"tag of version {version.version} of {version.model}"):
            self._client.set_model_version_tag(
                version.model, version.version, FORGOTTEN_TAG, day
            )

    def set_stage(self, model: str, version: str, stage: str) -> None:
        """Write the stage if version and stages exist; what was in Production is Archived."""
        what = f"stage {stage} for version {version}"
        with warnings.catch_warnings(), translated(what, unless=GONE | MISSING):
            warnings.simplefilter("ignore", FutureWarning)  # deprecated
            self._client.transition_model_version_stage(
                model, version, stage, archive_existing_versions=stage == "Production"
            )


def _version(found: Any) -> Version:
    return Version(
        found.name, str(found.version), found.run_id or "", unpacked(found.tags)
    )

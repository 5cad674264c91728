"""MLflow's model registry, in our own small types. Decides nothing."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow.artifacts import download_artifacts

from mlflow_server.connection import client, is_gone, is_missing, translated
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE
from stack.errors import RegistryError

if TYPE_CHECKING:
    from pathlib import Path

    from stack.settings import Settings

PRODUCTION = "production"
PLACES = {ONNX_FILE: ONNX_FILE, CONTRACT_FILE: f"extra_files/{CONTRACT_FILE}"}
"""Where a served file lies below the version's artifact folder (MLflow's own layout)."""


@dataclass(frozen=True)
class Version:
    """One registered version; `version` is MLflow's number as text, `created` is UTC."""

    model: str
    version: str
    run_id: str
    tags: dict[str, str]
    created: datetime
    stage: str
    changed: datetime


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

    def aliases(self, model: str) -> dict[str, str]:
        """Versions by alias; empty for a model that does not exist."""
        try:
            with translated(f"aliases of {model}"):
                found = self._client.get_registered_model(model).aliases
        except RegistryError as exc:
            if is_missing(exc):
                return {}
            raise
        return {alias: str(version) for alias, version in found.items()}

    def version(self, model: str, version: str) -> Version:
        with translated(f"version {version} of {model}"):
            return _version(self._client.get_model_version(model, version))

    def versions(self, model: str) -> list[Version]:
        """Every version, oldest first; empty for a model that does not exist."""
        return self._search(f"name = '{model}'", f"versions of {model}")

    def versions_of_run(self, model: str, run_id: str) -> list[Version]:
        found = self._search(f"run_id = '{run_id}'", f"versions of run {run_id}")
        return [version for version in found if version.model == model]

    def download(self, version: Version, folder: Path) -> None:
        """Put the served files into `folder`; unverified, see `served_model.wrong_files`."""
        what = f"files of version {version.version} of {version.model}"
        with translated(what):
            uri = self._client.get_model_version_download_uri(version.model, version.version)
        self.download_from(uri, folder, what)

    def download_from(self, uri: str, folder: Path, what: str) -> None:
        """Put the served files of the logged model at `uri` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary, translated(what):
            for name, place in PLACES.items():
                found = download_artifacts(
                    artifact_uri=f"{uri}/{place}",
                    dst_path=temporary,
                    tracking_uri=self._address,
                    registry_uri=self._address,
                )
                shutil.move(found, folder / name)

    def set_alias(self, model: str, role: str, version: str) -> None:
        with translated(f"set alias {role} of {model} to {version}"):
            self._client.set_registered_model_alias(model, role, version)

    def delete_alias(self, model: str, role: str) -> None:
        with translated(f"delete alias {role} of {model}"):
            self._client.delete_registered_model_alias(model, role)

    def set_stage(self, model: str, version: str, stage: str) -> None:
        """Move `version` to `stage`; a new Production archives the one before in the same step.

        Does nothing with a server that no longer has stages.
        """
        try:
            with warnings.catch_warnings(), translated(f"stage {stage} for version {version}"):
                warnings.simplefilter("ignore", FutureWarning)  # deprecated; the alias is the truth
                self._client.transition_model_version_stage(
                    model, version, stage, archive_existing_versions=stage == "Production"
                )
        except RegistryError as exc:
            if not is_gone(exc):
                raise

    def _search(self, query: str, what: str) -> list[Version]:
        found: list[Version] = []
        token: str | None = None
        with translated(what):
            while True:
                page = self._client.search_model_versions(query, page_token=token)
                found += [_version(item) for item in page]
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: int(version.version))


def _version(found: Any) -> Version:
    return Version(
        model=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        tags=dict(found.tags),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        stage=found.current_stage or "None",
        changed=datetime.fromtimestamp(
            (found.last_updated_timestamp or found.creation_timestamp) / 1000, UTC
        ),
    )

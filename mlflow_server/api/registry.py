"""MLflow's model registry over its REST API: aliases, stages, tags, versions and their files."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import RegistryError
from core.settings import Settings
from mlflow_server.api.rest import call_mlflow, read_artifact
from mlflow_server.manifest import served_files, wrong_files
from mlflow_server.roles import (
    PRODUCTION,
    TRAFFIC_TAG,
    RoleAssignment,
    traffic_text,
)
from mlflow_server.tags import REPRODUCED_TAG, YES, unpacked

MODELS_A_PAGE = "1000"
VERSIONS_A_PAGE = "10000"


@dataclass(frozen=True)
class Version:
    """One registered version; `version` is MLflow's number as text."""

    model: str
    version: str
    run_id: str
    tags: dict[str, str]


class Registry:
    """Registered models and their versions, without any decision. Threads may share it.

    Models of other installations that share the MLflow are not seen: see GYRE_MLFLOW_PREFIX.

    Raises:
        RegistryError: Every method raises it, in one line, if MLflow does not answer or refuses.

    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._call = partial(call_mlflow, settings)
        self._mlflow_name = settings.mlflow_name

    def models(self) -> dict[str, RoleAssignment]:
        """Return aliases and tags of every model, by its name."""
        query = {"max_results": MODELS_A_PAGE}
        prefix = self._settings.mlflow_prefix
        if prefix:
            query["filter"] = f"name LIKE '{prefix}%'"  # in which "_" is any character
        assignments = {}
        for answer in self._pages("registered_models", **query):
            name = self._settings.own_name(answer["name"])
            if name is not None:
                assignments[name] = _assignment(name, answer)
        return assignments

    def assignment(self, model: str) -> RoleAssignment:
        """Return the model as it is registered now; without aliases if it does not exist."""
        # `registered-models/get` would load every version.
        condition = f"name = '{self._mlflow_name(model)}'"
        for answer in self._pages("registered_models", filter=condition):
            return _assignment(model, answer)
        return RoleAssignment(model)

    def aliases(self, model: str) -> dict[str, str]:
        """Return versions by alias; empty if there is no such model."""
        return dict(self.assignment(model).aliases)

    def production(self, model: str) -> str | None:
        return self.aliases(model).get(PRODUCTION)

    def versions(self, model: str) -> list[Version]:
        """Return every version, oldest first; empty if there is no such model."""
        answers = self._version_pages(model, "version_number ASC")
        return [_version(model, answer) for answer in answers]

    def stages(self, model: str) -> dict[str, str]:
        """Return the stage of each version, the version last that was changed last."""
        answers = self._version_pages(model, "last_updated_timestamp ASC")
        return {str(answer["version"]): answer["current_stage"] for answer in answers}

    def reproduced(self, model: str) -> dict[str, bool]:
        """Return by version whether it was the same when it was last built again.

        Versions that were never built again are left out.
        """
        return {
            version.version: version.tags[REPRODUCED_TAG].startswith(YES)
            for version in self.versions(model)
            if REPRODUCED_TAG in version.tags
        }

    def version(self, model: str, number: str) -> Version:
        """Return one version.

        Raises:
            RegistryError: There is no such version.

        """
        name = self._mlflow_name(model)
        answer = self._call("model-versions/get", name=name, version=number)
        if answer is None:
            raise RegistryError(f"{model} has no version {number}")
        return _version(model, answer["model_version"])

    def versions_in_roles(self) -> list[tuple[str, Version]]:
        """Return the versions that have a role, of all models, each after its role."""
        pairs = []
        for model, assignment in self.models().items():
            for role, number in assignment.versions.items():
                pairs.append((role, self.version(model, number)))
        return pairs

    def set_alias(self, model: str, role: str, version: str | None) -> bool:
        """Let the alias name `version` (None: delete it); return False if there is no such version."""
        call = "registered-models/alias"
        body = {"name": self._mlflow_name(model), "alias": role}
        if version is None:
            self._call(call, body, "DELETE")
            return True
        return self._call(call, body | {"version": version}) is not None

    def set_traffic(self, model: str, version: str | None, percent: int) -> None:
        """Let challenger `version` answer `percent` of the requests; 0 deletes the tag."""
        body = {"name": self._mlflow_name(model), "key": TRAFFIC_TAG}
        traffic = traffic_text(version, percent)
        if traffic:
            self._call("registered-models/set-tag", body | {"value": traffic})
        else:
            self._call("registered-models/delete-tag", body, "DELETE")

    def set_stage(self, model: str, version: str, stage: str) -> None:
        """Set the stage if there is such a version; Production archives the version before it."""
        body = {
            "name": self._mlflow_name(model),
            "version": version,
            "stage": stage,
            "archive_existing_versions": stage == "Production",
        }
        self._call("model-versions/transition-stage", body)

    def tag(self, version: Version, name: str, value: str) -> None:
        """Set a tag of a registered version."""
        model = self._mlflow_name(version.model)
        place = {"name": model, "version": version.version}
        self._call("model-versions/set-tag", place | {"key": name, "value": value})

    def note_reproduction(self, version: Version, day: date, *, is_same: bool) -> None:
        """Set REPRODUCED_TAG after a version was built again."""
        self.tag(version, REPRODUCED_TAG, f"{YES if is_same else 'no'} {day}")

    def download(self, version: Version, folder: Path) -> None:
        """Put the served files of a version into `folder`. They are not checked: see `wrong_files`.

        Raises:
            ArtifactError: MLflow does not return a file.

        """
        number = version.version
        call = "model-versions/get-download-uri"
        name = self._mlflow_name(version.model)
        answer = self._call(call, name=name, version=number)
        if answer is None:
            raise RegistryError(f"{version.model} has no version {number}")
        folder.mkdir(parents=True, exist_ok=True)
        for file, place in served_files(version.tags).items():
            content = read_artifact(self._settings, answer["artifact_uri"], place)
            (folder / file).write_bytes(content)

    def damage(self, model: str, number: str) -> str:
        """Return a text about served files that differ from the registered; empty: none."""
        version = self.version(model, number)
        with TemporaryDirectory(prefix="gyre-") as name:
            self.download(version, Path(name))
            return wrong_files(Path(name), version.tags)

    def _version_pages(self, model: str, order: str) -> Iterator[dict[str, Any]]:
        return self._pages(
            "model_versions",
            filter=f"name = '{self._mlflow_name(model)}'",
            order_by=order,
            max_results=VERSIONS_A_PAGE,
        )

    def _pages(self, kind: str, **query: str) -> Iterator[dict[str, Any]]:
        """Yield the results of MLflow's search for a kind, of all pages of its answer."""
        call = f"{kind.replace('_', '-')}/search"
        while True:
            answer = self._call(call, None, **query) or {}
            yield from answer.get(kind, [])
            if not answer.get("next_page_token"):
                return
            query["page_token"] = answer["next_page_token"]


def _assignment(model: str, registered: dict[str, Any]) -> RoleAssignment:
    """Return a registered model of the results of MLflow's search."""
    aliases = {
        alias["alias"]: str(alias["version"]) for alias in registered.get("aliases", [])
    }
    return RoleAssignment(
        name=model,
        created=int(registered["creation_timestamp"]),
        aliases=aliases,
        tags=_tags(registered),
        updated=int(registered.get("last_updated_timestamp", 0)),
    )


def _version(model: str, answer: dict[str, Any]) -> Version:
    return Version(
        model=model,
        version=str(answer["version"]),
        run_id=answer.get("run_id", ""),
        tags=unpacked(_tags(answer)),
    )


def _tags(answer: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in answer.get("tags", [])}

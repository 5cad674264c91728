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
from mlflow_server.roles import PRODUCTION, TRAFFIC_TAG, RoleAssignment
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
    """Registered models and their versions; decides nothing. Threads may share it.

    Raises:
        RegistryError: From every method, in one line: MLflow does not answer, or refuses.

    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._call = partial(call_mlflow, settings)

    def models(self) -> dict[str, RoleAssignment]:
        """Aliases and tags of every model, by its name."""
        answers = self._pages("registered_models", max_results=MODELS_A_PAGE)
        return {answer["name"]: _assignment(answer) for answer in answers}

    def assignment(self, model: str) -> RoleAssignment:
        """Return the model as it is registered now; without aliases if it does not exist."""
        # `registered-models/get` would load every version.
        answers = self._pages("registered_models", filter=f"name = '{model}'")
        return next(map(_assignment, answers), RoleAssignment(model))

    def aliases(self, model: str) -> dict[str, str]:
        """Versions by alias; empty for a model that does not exist."""
        return dict(self.assignment(model).aliases)

    def production(self, model: str) -> str | None:
        return self.aliases(model).get(PRODUCTION)

    def versions(self, model: str) -> list[Version]:
        """Every version, oldest first; empty for a model that does not exist."""
        answers = self._pages(
            "model_versions",
            filter=f"name = '{model}'",
            order_by="version_number ASC",
            max_results=VERSIONS_A_PAGE,
        )
        return [_version(answer) for answer in answers]

    def reproduced(self, model: str) -> dict[str, bool]:
        """Whether a version was the same when it was last built again; without those never tried."""
        return {
            version.version: version.tags[REPRODUCED_TAG].startswith(YES)
            for version in self.versions(model)
            if REPRODUCED_TAG in version.tags
        }

    def version(self, model: str, number: str) -> Version:
        """Return one version; RegistryError where there is none."""
        answer = self._call("model-versions/get", name=model, version=number)
        if answer is None:
            raise RegistryError(f"{model} has no version {number}")
        return _version(answer["model_version"])

    def versions_in_roles(self) -> list[tuple[str, Version]]:
        """Return each role of each model that is taken, with the version."""
        pairs = []
        for model, assignment in self.models().items():
            for role, number in assignment.versions.items():
                pairs.append((role, self.version(model, number)))
        return pairs

    def set_alias(self, model: str, role: str, version: str | None) -> bool:
        """Let the alias name `version` (None: delete it); False where there is no such version."""
        call = "registered-models/alias"
        body = {"name": model, "alias": role}
        if version is None:
            self._call(call, body, "DELETE")
            return True
        return self._call(call, body | {"version": version}) is not None

    def set_traffic(self, model: str, version: str | None, percent: int) -> None:
        """Let challenger `version` answer `percent` of the requests; 0 takes the tag off."""
        body = {"name": model, "key": TRAFFIC_TAG}
        if percent:
            share = f"{version}:{percent}"
            self._call("registered-models/set-tag", body | {"value": share})
        else:
            self._call("registered-models/delete-tag", body, "DELETE")

    def set_stage(self, model: str, version: str, stage: str) -> None:
        """Set the stage if there is such a version; what was in Production is Archived."""
        body = {
            "name": model,
            "version": version,
            "stage": stage,
            "archive_existing_versions": stage == "Production",
        }
        self._call("model-versions/transition-stage", body)

    def tag(self, version: Version, name: str, value: str) -> None:
        """Set a tag beside those that the version was registered with."""
        place = {"name": version.model, "version": version.version}
        self._call("model-versions/set-tag", place | {"key": name, "value": value})

    def note_reproduction(self, version: Version, day: date, *, is_same: bool) -> None:
        """Note in REPRODUCED_TAG what came of building a version again."""
        self.tag(version, REPRODUCED_TAG, f"{YES if is_same else 'no'} {day}")

    def download(self, version: Version, folder: Path) -> None:
        """Put the files that a version is served by into `folder`; unchecked, see `wrong_files`.

        Raises:
            ArtifactError: MLflow does not return a file.

        """
        number = version.version
        call = "model-versions/get-download-uri"
        answer = self._call(call, name=version.model, version=number)
        if answer is None:
            raise RegistryError(f"{version.model} has no version {number}")
        folder.mkdir(parents=True, exist_ok=True)
        for name, place in served_files(version.tags).items():
            content = read_artifact(self._settings, answer["artifact_uri"], place)
            (folder / name).write_bytes(content)

    def damage(self, model: str, number: str) -> str:
        """Say which served files are not those registered; empty if all are."""
        version = self.version(model, number)
        with TemporaryDirectory(prefix="gyre-") as name:
            self.download(version, Path(name))
            return wrong_files(Path(name), version.tags)

    def _pages(self, kind: str, **query: str) -> Iterator[dict[str, Any]]:
        """Yield all that MLflow's search has of a kind, over all pages of its answer."""
        call = f"{kind.replace('_', '-')}/search"
        while True:
            answer = self._call(call, None, **query) or {}
            yield from answer.get(kind, [])
            if not answer.get("next_page_token"):
                return
            query["page_token"] = answer["next_page_token"]


def _assignment(registered: dict[str, Any]) -> RoleAssignment:
    """Read a registered model as MLflow's search has it."""
    aliases = {
        alias["alias"]: str(alias["version"]) for alias in registered.get("aliases", [])
    }
    created = int(registered["creation_timestamp"])
    return RoleAssignment(registered["name"], created, aliases, _tags(registered))


def _version(answer: dict[str, Any]) -> Version:
    return Version(
        model=answer["name"],
        version=str(answer["version"]),
        run_id=answer.get("run_id", ""),
        tags=unpacked(_tags(answer)),
    )


def _tags(answer: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in answer.get("tags", [])}

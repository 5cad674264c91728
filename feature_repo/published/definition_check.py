"""The check of definitions: an ingest may not change the features of a version in a role."""

import getpass
import sys
from datetime import datetime
from functools import cache

from feast import FeatureStore

from core.errors import DataError
from core.settings import Settings, load_settings
from core.temporary import temporary_installation
from feature_repo.datasets import load_datasets
from feature_repo.definition import DEFINITION_TAG, Dataset, table_versions
from feature_repo.published.service import PublishedService
from feature_repo.published.store import open_store, publish_beside
from mlflow_server.api.registry import Registry, Version

ACCEPTED_TAG = "accepted_definition."
"""Prefix of the tags of a version for changes that GYRE_CHANGE_LIVE_FEATURES accepted."""
REMEDY = (
    "Publish the change under new names (view and feature service) and train with them, or take "
    "the version out of its role. To change its served values: "
    "GYRE_CHANGE_LIVE_FEATURES=true gyre ingest"
)


class DefinitionChangedError(DataError):
    """A version in a role would be served other values."""


def check_definitions(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    store: FeatureStore,
) -> None:
    """Compare the published definitions with the definitions that versions in a role were trained on.

    Versions count that read `dataset`. With GYRE_CHANGE_LIVE_FEATURES a change is accepted: a tag
    of the version notes it, so that it is accepted from then on.

    Args:
        settings: Settings of the installation.
        dataset: Dataset whose views are to be computed.
        as_of: Time of the ingest, aware UTC.
        store: Feast's store of the installation.

    Raises:
        DefinitionChangedError: A version would be served other values.
        RegistryError: MLflow does not answer.

    """
    versions = [
        (role, version)
        for role, version in _versions(settings)
        if dataset.name in table_versions(version.tags)
    ]
    if settings.change_live_features:
        note = f"at {as_of:%Y-%m-%d %H:%M} UTC by {getpass.getuser()}"
        for _, version in versions:
            service = _service(settings, version, store)
            for name, definition in changed_definitions(service, version).items():
                value = f"{definition} {note}"
                Registry(settings).tag(version, ACCEPTED_TAG + name, value)
        return
    messages = _messages(settings, versions, store)
    if messages:
        raise DefinitionChangedError(
            f"{'; '.join(messages)}. Its served values stay unchanged. "
            f"{REMEDY} {dataset.name}"
        )


@cache
def announce_changes() -> None:
    """Print to stderr, once in a process, the versions that the next ingest will refuse to change.

    `feast apply` calls this, and succeeds whatever it finds.
    """
    try:
        settings = load_settings()
        versions = _versions(settings)
        if not versions:
            return
        with temporary_installation(settings, "apply") as temporary:
            publish_beside(temporary, *load_datasets()[0])
            messages = _messages(temporary, versions, open_store(temporary))
        lines = [
            f"{message}: gyre ingest will refuse that. {REMEDY}" for message in messages
        ]
    except Exception as exc:  # noqa: BLE001  (the published definitions are right all the same)
        lines = [f"the definitions of versions in a role are not known: {exc}"]
    for line in lines:
        print(f"gyre: {line}", file=sys.stderr)  # noqa: T201


def _versions(settings: Settings) -> list[tuple[str, Version]]:
    was_started = not settings.starts("mlflow") or (settings.home / "mlflow").exists()
    return Registry(settings).versions_in_roles() if was_started else []


def _messages(
    settings: Settings, versions: list[tuple[str, Version]], store: FeatureStore
) -> list[str]:
    """Return a line for each version whose definitions have changed since its training."""
    messages = []
    for role, version in versions:
        service = _service(settings, version, store)
        views = []
        for name in changed_definitions(service, version):
            feature_views = service.feature_views if service else {}
            features = [
                feature for feature, view in feature_views.items() if view == name
            ]
            views.append(f"{name} ({', '.join(features)})" if features else name)
        if views:
            messages.append(
                f"{', '.join(views)} changed: version {version.version} of {version.model} "
                f"({role}) was trained with another definition"
            )
    return messages


def _service(
    settings: Settings, version: Version, store: FeatureStore
) -> PublishedService | None:
    """Return the feature service of a version; None if it is not published any more."""
    try:
        name = version.tags.get("feature_service", "")
        return PublishedService(settings, name, store)
    except DataError:
        return None


def changed_definitions(
    service: PublishedService | None, version: Version
) -> dict[str, str]:
    """Return the current definitions that have changed since a version's training.

    Args:
        service: The version's service as it is published; None: it is not.
        version: The version.

    Returns:
        Hash by name; "none" for what is not there any more.

    """
    definitions = service.definitions() if service else {}
    changed_definitions = {}
    for tag, trained in version.tags.items():
        if tag.startswith(DEFINITION_TAG):
            name = tag.removeprefix(DEFINITION_TAG)
            definition = definitions.get(name, "none")
            accepted = version.tags.get(ACCEPTED_TAG + name, "")
            if definition != trained and not accepted.startswith(definition):
                changed_definitions[name] = definition
    return changed_definitions

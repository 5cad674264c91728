"""Refuses to change the meaning of features that a version in a role is served."""

import getpass
import logging
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from core.errors import DataError, RegistryError
from core.settings import Settings, load_settings
from core.temporary import temporary_installation
from feature_repo.datasets import load_datasets
from feature_repo.definition import Dataset, table_versions
from feature_repo.definition_hash import DEFINITION_TAG
from feature_repo.features import raw_table
from feature_repo.store import FeatureStore, publish_beside
from feature_repo.views import redefined
from mlflow_server.rest import Version, tag_version, versions_in_roles

log = logging.getLogger(__name__)
ACCEPTED_TAG = "accepted_definition."
"""Beginning of the tags of a version that say which change an explicit word let in."""
REMEDY = (
    "Publish the change under new names (view and feature service) and train with them, or take "
    "the version out of its role. To change what it is served: "
    "GYRE_CHANGE_LIVE_FEATURES=true gyre ingest"
)


class DefinitionChangedError(DataError):
    """A version in a role would be served other values."""


@dataclass(frozen=True)
class Change:
    """What a version in a role was not trained with.

    Attributes:
        version: The version.
        definitions: The definitions of now, by name.
        message: The same in words.

    """

    version: Version
    definitions: dict[str, str]
    message: str


def check_definitions(settings: Settings, dataset: Dataset, as_of: datetime) -> None:
    """Compare what is published with what the versions in a role were trained with.

    Those that read `dataset` count. With GYRE_CHANGE_LIVE_FEATURES, a change is accepted: a tag of
    the version notes it, so that it is accepted from then on.

    Raises:
        DefinitionChangedError: A version would be served other values. An alert says so too.
        RegistryError: MLflow does not answer, and the code computes a view in another way.

    """
    try:
        versions = [
            (role, version)
            for role, version in _versions(settings)
            if dataset.name in table_versions(version.tags)
        ]
        changes = _changes(FeatureStore(settings), versions)
        if settings.change_live_features:
            _accept(settings, changes, as_of)
            return
    except RegistryError as exc:
        is_redefined = redefined(settings, dataset, raw_table(settings, dataset))
        if is_redefined and not settings.change_live_features:
            raise
        log.warning("%s: definitions are not compared: %s", dataset.name, exc)
        return
    if changes:
        messages = "; ".join(change.message for change in changes)
        error = DefinitionChangedError(
            f"{messages}. The values that it is served stay as they are. {REMEDY} {dataset.name}"
        )
        _alert(settings, dataset, error, as_of)
        raise error


@cache
def announce_changes() -> None:
    """Write to stderr, once a process, which versions the next ingest will refuse to change.

    `feast apply` calls it, and never fails for it.
    """
    try:
        settings = load_settings()
        versions = _versions(settings)
        if not versions:
            return
        with temporary_installation(settings, "apply") as temporary:
            publish_beside(temporary, *load_datasets()[0])
            changes = _changes(FeatureStore(temporary), versions)
        lines = [f"{change.message}: gyre ingest will refuse that. {REMEDY}" for change in changes]
    except Exception as exc:  # noqa: BLE001  (what is applied is right all the same)
        lines = [f"what versions in a role were trained with is not known: {exc}"]
    for line in lines:
        print(f"gyre: {line}", file=sys.stderr)  # noqa: T201


def _versions(settings: Settings) -> list[tuple[str, Version]]:
    was_started = settings.mlflow_url is not None or (settings.home / "mlflow").exists()
    return versions_in_roles(settings) if was_started else []


def _changes(store: FeatureStore, versions: list[tuple[str, Version]]) -> list[Change]:
    changes = []
    for role, version in versions:
        service = version.tags.get("feature_service", "")
        try:
            definitions = store.definitions(service)
            views = store.feature_views(service)
        except DataError:  # the service is not published any more
            definitions = {}
            views = {}
        changed = _changed_definitions(version.tags, definitions)
        if changed:
            parts = []
            for name in changed:
                features = [feature for feature, view in views.items() if view == name]
                parts.append(f"{name} ({', '.join(features)})" if features else name)
            message = (
                f"{', '.join(parts)} changed: version {version.version} of {version.model} "
                f"({role}) was trained with another definition"
            )
            changes.append(Change(version, changed, message))
    return changes


def _changed_definitions(tags: dict[str, str], definitions: dict[str, str]) -> dict[str, str]:
    changed = {}
    for tag, trained in tags.items():
        if tag.startswith(DEFINITION_TAG):
            name = tag.removeprefix(DEFINITION_TAG)
            definition = definitions.get(name, "none")
            accepted = tags.get(ACCEPTED_TAG + name, "")
            if definition != trained and not accepted.startswith(definition):
                changed[name] = definition
    return changed


def _accept(settings: Settings, changes: list[Change], as_of: datetime) -> None:
    note = f"at {as_of:%Y-%m-%d %H:%M} UTC by {getpass.getuser()}"
    for change in changes:
        for name, definition in change.definitions.items():
            tag_version(settings, change.version, ACCEPTED_TAG + name, f"{definition} {note}")


def _alert(settings: Settings, dataset: Dataset, error: Exception, at: datetime) -> None:
    """Alert as the failed task of the DAG `ingest` does: one incident, one alert."""
    from mlflow_server.alerts import alert_failure  # noqa: PLC0415  (seldom)
    from mlflow_server.records import Records  # noqa: PLC0415

    task = f"ingest.ingest_{dataset.name}"
    reason = f"{type(error).__name__}: {error}"
    with closing(Records(settings)) as records:
        alert_failure(settings, records, dataset.name, task, reason, at)

"""MLflow's server reads and writes files in its own store alone, whatever a client names.

A client can give an experiment, a version or a trace a location. MLflow would read and write there as
the owner of the stack: any file of the machine. So such a location is refused where it is given, and
again where it is used, as a database may hold it from before. Gyre's own processes, which read the
same database, ask again, too (mlflow_server/api).
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import (
    get_registered_artifact_repositories,
)
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.uri import validate_path_within_directory

from mlflow_server.api.store import FOLDERS, PROXIED, is_in, is_plain, is_proxied

REFERENCES = frozenset({"runs", "models"})
"""Schemes that name a run or a model, whose own location is looked up and checked again."""
GIVEN_BY = {
    "POST 2.0/mlflow/experiments/create": {"artifact_location", "artifactLocation"},
    "POST 2.0/mlflow/model-versions/create": {"source"},
}
"""Routes by which a client gives a location, with the names of the field: JSON has both spellings."""
GIVEN_BY_TAG = frozenset(
    {
        "POST 2.0/mlflow/traces",
        "PATCH 2.0/mlflow/traces/{request_id}",
        "PATCH 2.0/mlflow/traces/{request_id}/tags",
        "POST 3.0/mlflow/traces",
        "PATCH 3.0/mlflow/traces/{trace_id}/tags",
    }
)
"""Routes by which a client gives one as a tag of a trace."""
TAGS = frozenset({"mlflow.artifactLocation", "mlflow.trace.archiveLocation"})
"""The tags."""
PLACEHOLDERS = frozenset({"dummy-source", "prompt-template"})
"""Sources of the versions of a prompt, which have no files."""
Repository = Callable[..., ArtifactRepository]


class Locations:
    """The store of a server, and the locations that lie in it."""

    def __init__(self, *stores: str) -> None:
        """Take the places that the server was started with.

        Args:
            stores: Folders, or addresses such as s3://bucket/prefix; "" is none.

        """
        self._stores = [
            store for store in stores if store and not store.startswith(PROXIED)
        ]

    def check_given(self, route: str, body: Any) -> None:
        """Refuse a request that gives a location which is not in the store.

        Args:
            route: Its name in SERVED (mlflow_server/server/routes.py).
            body: Its JSON document.

        Raises:
            MlflowException: It is refused.

        """
        fields = GIVEN_BY.get(route, ())
        document = body if isinstance(body, dict) else {}  # MLflow refuses another
        given = [(field, document.get(field)) for field in fields]
        if route in GIVEN_BY_TAG:
            given += _tags_of(body)
        for field, location in given:
            if not isinstance(location, str):  # MLflow refuses it
                continue
            is_named = field == "source" and _is_reference(location)
            is_known = not location or is_named or is_proxied(location)
            if not is_known and not self.has(location):
                text = f"{field}: {location!r} is not in the store of this server"
                remedy = "leave it out, or name a place in mlflow-artifacts:/"
                raise MlflowException(f"{text}; {remedy}", INVALID_PARAMETER_VALUE)

    def has(self, location: str) -> bool:
        """Whether an address is that of the store, or lies below it."""
        return any(is_in(store, location) for store in self._stores)

    def guard(self) -> None:
        """Let MLflow's code in this process open no location outside the store.

        Every part of MLflow that opens a location asks the same table of schemes.
        """
        repositories: dict[str, Repository] = get_registered_artifact_repositories()
        for scheme, repository in repositories.items():
            opened = StoreFolder if scheme in FOLDERS else repository
            if scheme not in REFERENCES:
                repositories[scheme] = partial(self._open, opened)

    def _open(
        self, repository: Repository, artifact_uri: str, *arguments: Any, **options: Any
    ) -> ArtifactRepository:
        if not self.has(artifact_uri):
            text = f"{artifact_uri!r} is not in the store of this server"
            raise MlflowException(text, PERMISSION_DENIED)
        return repository(artifact_uri, *arguments, **options)


def _tags_of(body: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tags that are in TAGS, wherever they stand in a JSON document."""
    if isinstance(body, list):
        for item in body:
            yield from _tags_of(item)
    if isinstance(body, dict):
        # A tag is a pair of `key` and `value` in older calls, and of name and value in newer ones.
        for name, value in (*body.items(), (body.get("key"), body.get("value"))):
            if name in TAGS:
                yield name, value
            yield from _tags_of(value)


def _is_reference(source: str) -> bool:
    """Whether the source of a version is a run, a model or that of a prompt."""
    url = urlsplit(source)
    is_address = url.scheme in REFERENCES and not url.netloc and is_plain(source)
    return is_address or source in PLACEHOLDERS


class StoreFolder(LocalArtifactRepository):  # type: ignore[misc]  # MLflow does not type it
    """A folder of the store; a symbolic link that leads out of it is no part of it."""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file or a folder; MLflow's own method checks no link."""
        if artifact_path:
            path = Path(self.artifact_dir, artifact_path)
            validate_path_within_directory(self.artifact_dir, f"{path}")
        super().delete_artifacts(artifact_path)

    def download_trace_data(self) -> dict[str, Any]:
        """Read a trace, by a method that checks links."""
        self.get_local_path("traces.json")
        data: dict[str, Any] = super().download_trace_data()
        return data

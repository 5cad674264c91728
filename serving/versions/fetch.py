"""`python -m serving.versions.fetch MODEL VERSION`: copy, check and try a version.

A worker starts this process, so that a file that crashes its reader ends no worker. One process
runs at a time.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from core.errors import ArtifactError, RegistryError
from core.settings import Settings, load_settings
from core.spec import load_spec
from feature_repo.published.config import online_store_type
from mlflow_server.api.registry import Registry
from serving.versions.copies import ORIGIN_FILE, LocalCopies, Origin, read_origin
from serving.versions.opening import open_version, reason_of


def main(model: str, version: str) -> None:
    """Leave a copy of a version in the folder of its model, or a refusal.

    Raises:
        RegistryError: MLflow does not answer.

    """
    start = datetime.now(UTC)
    settings = load_settings()
    copies = LocalCopies(settings, model)
    registry = Registry(settings)
    with FileLock(settings.home / "serving" / "fetch.lock"):  # SIGKILL releases it
        assignment = registry.models()[model]
        copies.keep_only(assignment.versions.values())
        origin = read_origin(registry, model, version, assignment.created)
        # The process of another worker may have tried it, while this one waited.
        refusal = copies.refusal(version)
        was_refused = refusal is not None and refusal.time >= start
        if was_refused or copies.origin(version) == origin:
            return
        try:
            _fetch(settings, model, version, origin)
        except Exception as exc:  # whatever it is, the version is not served
            if isinstance(exc, RegistryError) and not isinstance(exc, ArtifactError):
                raise  # MLflow is away: that says nothing of the version
            copies.refuse(version, origin, reason_of(exc))


def _fetch(settings: Settings, model: str, version: str, origin: Origin) -> None:
    """Copy a version, if it can be served."""
    copies = LocalCopies(settings, model)
    copies.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=copies.folder) as temporary:
        part = Path(temporary, version)
        registry = Registry(settings)
        registry.download(registry.version(model, version), part)
        _, session = open_version(
            folder=part,
            digests=origin.digests,
            spec=load_spec(model),
            online_store=online_store_type(settings),
        )
        session.close()
        (part / ORIGIN_FILE).write_text(origin.model_dump_json())
        copies.remove(version)  # of a model of this name that was deleted
        part.rename(copies.folder / version)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RegistryError as exc:
        sys.exit(f"serving.versions.fetch: {exc}")

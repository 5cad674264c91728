"""Files that this machine keeps of a model: copies of versions, the last production, refusals."""

import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from core.files import replace_file
from core.settings import Settings
from mlflow_server.api.registry import Registry
from mlflow_server.manifest import DIGEST_TAG, Frozen

ORIGIN_FILE = "origin.json"
PRODUCTION_FILE = "production"
REFUSED = ".refused"
REFUSED_TIME = timedelta(minutes=10)
"""How long a version is not tried again, unless something changes."""
T = TypeVar("T", bound=Frozen)
logger = logging.getLogger(__name__)


class Origin(Frozen):
    """Identity of a version in MLflow. A model that is registered again uses its numbers again.

    Attributes:
        created: When the model was registered, in milliseconds since 1970.
        digests: SHA-256 of each file, by its tag.

    """

    created: int
    digests: dict[str, str]


def read_origin(registry: Registry, model: str, version: str, created: int) -> Origin:
    """Return the identity of a version of the model that was registered at `created`.

    Raises:
        RegistryError: MLflow does not answer.

    """
    tags = registry.version(model, version).tags
    names = [name for name in tags if name.startswith(DIGEST_TAG)]
    return Origin(created=created, digests={name: tags[name] for name in names})


class Refusal(Frozen):
    """Why a version is not served.

    Attributes:
        reason: Text that says why.
        origin: Identity of the version that was refused.
        time: Time of the refusal, aware UTC.

    """

    reason: str
    origin: Origin
    time: datetime

    def is_due(self, origin: Origin, server_start: datetime, now: datetime) -> bool:
        """Whether the version is to be tried again.

        It is once its identity has changed, once the server has started since, as it may be another
        release, and after REFUSED_TIME.
        """
        has_changed = self.origin != origin or self.time < server_start
        return has_changed or now >= self.time + REFUSED_TIME


class LocalCopies:
    """The folder `GYRE_HOME/serving/models/MODEL/`, which several processes use at once.

    `serving.versions.fetch` renames each copy, `VERSION/`, into place.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        self.folder = settings.home / "serving" / "models" / model

    def origin(self, version: str) -> Origin | None:
        """Return where the copy of `version` is from; None: there is no complete copy."""
        return _read(self.folder / version / ORIGIN_FILE, Origin)

    def refusal(self, version: str) -> Refusal | None:
        """Return why a version was refused; None: it was not."""
        return _read(self.folder / f"{version}{REFUSED}", Refusal)

    def refuse(self, version: str, origin: Origin, reason: str) -> None:
        """Refuse a version, so that no process tries it again soon."""
        refusal = Refusal(reason=reason, origin=origin, time=datetime.now(UTC))
        file = self.folder / f"{version}{REFUSED}"
        replace_file(file, refusal.model_dump_json().encode())

    def keep_refusals(self, versions: Collection[str]) -> None:
        """Forget the refusals of other versions, which are tried once they have a role again."""
        for file in self.folder.glob(f"*{REFUSED}"):
            if file.stem not in versions:
                file.unlink(missing_ok=True)

    def production(self) -> dict[str, int]:
        """Return the versions that a start without MLflow may serve, the last production first.

        Each version has the time when its model was registered.
        """
        try:
            text = (self.folder / PRODUCTION_FILE).read_text()
            lines = [line.split() for line in text.splitlines()]
            return {version: int(created) for version, created in lines}
        except (OSError, ValueError):
            return {}

    def note_production(self, version: str, created: int) -> None:
        """Have the next start without MLflow serve `version`, else the one before it."""
        last = next(iter(self.production().items()), None)
        if last == (version, created):
            return
        lines = [f"{version} {created}"]
        if last is not None and last[0] != version:
            lines.append(f"{last[0]} {last[1]}")
        content = "\n".join(lines).encode()
        file = self.folder / PRODUCTION_FILE
        try:
            replace_file(file, content)
        except OSError as exc:
            logger.warning("%s is written in place: %s", file, exc)
            # A full disk has room for no second file.
            with suppress(OSError), file.open("r+b") as production:
                production.write(content)
                production.truncate()

    def remove(self, version: str) -> None:
        """Remove the copy of a version."""
        shutil.rmtree(self.folder / version, ignore_errors=True)

    def keep_only(self, versions: Collection[str]) -> None:
        """Remove other copies but those of production, and the remains of killed fetches."""
        kept_names = {*versions, *self.production()}
        for path in self.folder.glob("*/"):
            if path.name not in kept_names:
                self.remove(path.name)


def _read(file: Path, kind: type[T]) -> T | None:
    """Return the content of a file; None: it cannot be read."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None

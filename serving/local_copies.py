"""The copies of registered versions on this machine.

`GYRE_HOME/serving/models/MODEL/VERSION/` is complete once it has this name: `serving.fetch` renames
it into place.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stack.settings import Settings

ORIGIN_FILE = "origin.json"


class Origin(BaseModel):
    """Which version a copy is of.

    created: when its registered model was made, milliseconds since 1970: versions are numbered
    from 1 again where a model is deleted. digests: SHA-256 of each file, by its tag.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: int
    digests: dict[str, str]


class LocalCopies:
    """The copies of one model's versions. Several processes may use them at once."""

    def __init__(self, settings: Settings, model: str) -> None:
        self.folder = settings.home / "serving" / "models" / model

    def path(self, version: str) -> Path:
        return self.folder / version

    def origin(self, version: str) -> Origin | None:
        """Return where the copy of `version` is from; None: there is no complete copy."""
        try:
            return Origin.model_validate_json((self.path(version) / ORIGIN_FILE).read_bytes())
        except (OSError, ValueError):
            return None

    def newest(self) -> list[str]:
        """Return the versions that are here, the one last in production first."""
        complete = [path for path in self.folder.glob("*") if self.origin(path.name)]
        complete.sort(key=os.path.getmtime, reverse=True)
        return [path.name for path in complete]

    def mark_production(self, version: str) -> None:
        """Have a start without MLflow take this version: its folder is the newest."""
        with suppress(OSError):
            os.utime(self.path(version))

    def remove(self, version: str) -> None:
        shutil.rmtree(self.path(version), ignore_errors=True)

    def keep_only(self, versions: set[str]) -> None:
        """Remove other copies, and what an ended fetch left behind.

        The version last in production stays: where the next one is refused, it answers.
        """
        kept = versions.union(self.newest()[:1])
        for path in self.folder.glob("*"):
            if path.name not in kept:
                self.remove(path.name)

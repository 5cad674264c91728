"""What the keeper tells the workers: one file, `GYRE_HOME/serving/announcement.json`.

It names the versions that hold a role, with the digests their files must have. Replaced as a
whole, it outlives both: a worker that starts serves what it says before the keeper has asked
MLflow, and also when MLflow is down.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pathlib import Path

    from stack.settings import Settings

Role = Literal["production", "challenger", "shadow", "previous"]
SILENT_SECONDS = 15
"""A keeper that has not written for so long is down."""


class Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Held(Form):
    """A version in a role. percent: of the entities that the challenger answers."""

    version: str
    digests: dict[str, str]
    percent: int = Field(100, ge=0, le=100)


class ModelState(Form):
    """What the keeper knows of one model.

    refused: why each version that was asked for is not served. not_built: views published and
    not computed since, in words; None: not looked at yet. newest_event: UTC, of its dataset.
    """

    roles: dict[Role, Held] = Field(default_factory=dict)
    waiting: str | None = None
    registry_problem: str | None = None
    refused: dict[str, str] = Field(default_factory=dict)
    not_built: list[str] | None = None
    newest_event: AwareDatetime | None = None


class Announcement(Form):
    written: AwareDatetime
    models: dict[str, ModelState]


def local_copy(settings: Settings, model: str, version: str) -> Path:
    """Folder of the verified files of a version."""
    return settings.home / "serving" / "models" / model / version


def announce(settings: Settings, models: dict[str, ModelState]) -> None:
    path = _path(settings)
    part = path.with_suffix(f".{os.getpid()}.part")
    written = Announcement(written=datetime.now(UTC), models=models)
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w") as file:
        file.write(written.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def announced(settings: Settings) -> Announcement | None:
    """Return what was last announced; None: nothing ever, or nothing readable."""
    try:
        return Announcement.model_validate_json(_path(settings).read_bytes())
    except (OSError, ValueError):
        return None


def silent(found: Announcement | None) -> str | None:
    """Say since when the keeper has not written; None while it does."""
    if found is None:
        return "the keeper has not announced anything yet"
    late = (datetime.now(UTC) - found.written).total_seconds() > SILENT_SECONDS
    return f"the keeper is silent since {found.written:%Y-%m-%d %H:%M:%S} UTC" if late else None


def _path(settings: Settings) -> Path:
    return settings.home / "serving" / "announcement.json"

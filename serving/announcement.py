"""What the keeper tells the workers: one file in memory, and its copy in GYRE_HOME/serving.

It names the versions that hold a role, with the digests their files must have. Replaced as a
whole, it outlives both: a worker that starts serves what it says before the keeper has asked
MLflow, and also when MLflow is down. In memory, because a promotion must reach the workers while
the disk is full; the copy is for a start after a clean end or a reboot.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from stack.settings import Settings

Role = Literal["production", "challenger", "shadow", "previous"]
NAME = "announcement.json"
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
    not computed since, in words; None: not looked at yet.
    """

    roles: dict[Role, Held] = Field(default_factory=dict)
    waiting: str | None = None
    registry_problem: str | None = None
    refused: dict[str, str] = Field(default_factory=dict)
    not_built: list[str] | None = None


class Announcement(Form):
    written: AwareDatetime
    models: dict[str, ModelState]


def local_copy(settings: Settings, model: str, version: str) -> Path:
    """Folder of the verified files of a version."""
    return settings.home / "serving" / "models" / model / version


def in_memory(settings: Settings) -> Path:
    """Folder of this home that no full disk reaches; the server makes it at its start."""
    shared = Path("/dev/shm")  # noqa: S108  (the folder in it is ours alone)
    base = shared if shared.is_dir() else Path(tempfile.gettempdir())
    name = hashlib.blake2b(os.fsencode(settings.home), digest_size=8).hexdigest()
    return base / f"gyre-{os.getuid()}-{name}"


def announce(settings: Settings, models: dict[str, ModelState]) -> bool:
    """Tell the workers; False: for want of room a start after the next reboot would not know.

    Raises:
        OSError: it cannot be told in memory.

    """
    written = Announcement(written=datetime.now(UTC), models=models)
    in_memory(settings).mkdir(mode=0o700, exist_ok=True)
    _replace(in_memory(settings) / NAME, written.model_dump_json().encode())
    return written_down(settings)


def announced(settings: Settings) -> Announcement | None:
    """Return what was last announced; None: nothing ever, or nothing readable."""
    for path in (in_memory(settings) / NAME, _on_disk(settings)):
        with suppress(OSError, ValueError):
            return Announcement.model_validate_json(path.read_bytes())
    return None


def written_down(settings: Settings) -> bool:
    """Whether the disk has what memory says, once it was tried."""
    try:
        _replace(_on_disk(settings), (in_memory(settings) / NAME).read_bytes())
    except FileNotFoundError:
        return True  # nothing was announced since
    except OSError:
        return False
    return True


def forget_another_home(settings: Settings) -> None:
    """At a start: where the disk knows of no announcement, one in memory is a removed home's."""
    if not _on_disk(settings).exists():
        (in_memory(settings) / NAME).unlink(missing_ok=True)


def stamp(settings: Settings) -> tuple[int, int] | None:
    """Return what changes whenever something is announced; None: nothing ever was."""
    for path in (in_memory(settings) / NAME, _on_disk(settings)):
        with suppress(OSError):
            found = path.stat()
            return found.st_ino, found.st_mtime_ns
    return None


def silent(found: Announcement | None) -> str | None:
    """Say since when the keeper has not written; None while it does."""
    if found is None:
        return "the keeper has not announced anything yet"
    late = (datetime.now(UTC) - found.written).total_seconds() > SILENT_SECONDS
    return f"the keeper is silent since {found.written:%Y-%m-%d %H:%M:%S} UTC" if late else None


def _replace(path: Path, content: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _on_disk(settings: Settings) -> Path:
    return settings.home / "serving" / NAME

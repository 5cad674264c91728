"""Which folder holds the rows of a view: a link on disk says it.

Where `data` is on S3, the folders are there too, beside objects that stand for the links; a host
fetches what it lacks.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from upath import UPath

from core.errors import DataError
from core.files import reached, read_file, replace_file
from core.settings import Settings

WHOLE = re.compile(r"\.[0-9a-f]{16}\.\d+$")
"""How the name of a folder ends whose rows are complete."""


def view_path(settings: Settings, view: str) -> Path:
    """Link to the folder of a view's rows."""
    return settings.features / f"{view}.parquet"


def online_path(settings: Settings, view: str) -> Path:
    """Link to the folder that the online store was filled from."""
    return settings.features / f"{view}.online"


def target(settings: Settings, link: Path) -> str:
    """Name of the folder that `link` points to; empty if to none."""
    if not settings.data_url:
        return _target(link)
    with reached(link.name), suppress(FileNotFoundError):
        return read_file(_shared(settings) / link.name).decode()
    return ""


def point(settings: Settings, link: Path, wanted: str) -> None:
    """Make `link` point to the folder `wanted` in one step; to none if empty."""
    if settings.data_url:
        with reached(link.name):
            replace_file(_shared(settings) / link.name, wanted)
    _point(link, wanted)


def fetch(settings: Settings, view: str) -> None:
    """Have the rows of `view` on this disk as they are on S3. The last ones stay for readers."""
    link = view_path(settings, view)
    if not settings.data_url:
        return
    settings.features.mkdir(parents=True, exist_ok=True)
    with FileLock(settings.features / f".{view}.lock"):
        wanted, old = target(settings, link), _target(link)
        if wanted and (wanted != old or not link.exists()):
            if not (settings.features / wanted).is_dir():  # an ingest was killed before its link
                _download(settings, view, wanted, old)
            _point(link, wanted)
            there = settings.features.glob(f"{view}.*.*")  # ingest writes some of these
            _remove((each for each in there if WHOLE.search(each.name)), {wanted, old})


def _download(settings: Settings, view: str, wanted: str, old: str) -> None:
    """Fetch the folder `wanted`; what it shares with `old` is linked."""
    shared, missing = _shared(settings) / wanted, list[str]()
    with reached(view), TemporaryDirectory(dir=settings.features, prefix=".fetch-") as folder:
        part = Path(folder, wanted)
        if not (names := _names(shared)):
            remedy = f"remove {_shared(settings)}, then run gyre ingest"
            raise DataError(f"{view}: {shared} is empty: {remedy}")
        for name in names:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            own = settings.features / old / name
            if _expression(old) == _expression(wanted) and own.exists():
                os.link(own, part / name)
            else:
                missing.append(name)
        if missing:
            theirs = [(shared / name).path for name in missing]
            shared.fs.get(theirs, [str(part / name) for name in missing])
        part.rename(settings.features / wanted)


def publish(settings: Settings, view: str, wanted: str, old: str) -> None:
    """Put the folder `wanted` of `view` on S3; what it shares with `old` is copied there."""
    if not settings.data_url:
        return
    mine, shared = settings.features / wanted, _shared(settings)
    names = [path.relative_to(mine).as_posix() for path in mine.glob("*/*.parquet")]
    is_same = old != wanted and _expression(old) == _expression(wanted)
    files, kept = shared.fs, set(_names(shared / old)).intersection(names if is_same else ())
    new = [name for name in names if name not in kept]
    with reached(view):
        _remove([shared / wanted], set())  # what a killed one left
        files.put([str(mine / name) for name in new], [(shared / wanted / n).path for n in new])
        for name in kept:
            files.cp_file((shared / old / name).path, (shared / wanted / name).path)
        _remove(shared.glob(f"{view}.*.*"), {wanted, old})


def drop_older(settings: Settings, view: str) -> None:
    """Remove the rows that readers of before may still read: they fail."""
    newest = {target(settings, view_path(settings, view))}
    for folder in (UPath(settings.features), _shared(settings)):
        _remove(folder.glob(f"{view}.*.*"), newest)


def _shared(settings: Settings) -> UPath:
    return settings.data / "features"


def _names(folder: UPath) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.parquet")]


def _expression(folder: str) -> str:
    """What a folder's name says of the rows, without the version of the raw table.

    Of one expression, files of the same name are the same.
    """
    return folder.rpartition(".")[0]


def _remove(folders: Iterable[Path | UPath], but: set[str]) -> None:
    for folder in folders:
        if folder.name not in but:
            place = UPath(folder)
            with suppress(FileNotFoundError):
                place.fs.rm(place.path, recursive=True)


def _target(link: Path) -> str:
    return link.readlink().name if link.is_symlink() else ""


def _point(link: Path, wanted: str) -> None:
    if not wanted:
        link.unlink(missing_ok=True)
        return
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(wanted)
    fresh.replace(link)

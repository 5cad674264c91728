"""Which folder holds the rows of a view: a link on disk says it.

Where `data` is on S3, the folders are there too, beside objects that stand for the links; a host
fetches what it lacks.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from upath import UPath

from core.files import reached, read_file, replace_file
from core.settings import Settings


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
    if not settings.data_url or (wanted := target(settings, link)) in {"", _target(link)}:
        return
    shared, old = _shared(settings) / wanted, _target(link)
    settings.cache.mkdir(parents=True, exist_ok=True)
    with (
        reached(view),
        TemporaryDirectory(dir=settings.cache, ignore_cleanup_errors=True) as folder,
    ):
        part, missing = Path(folder), list[str]()
        for name in _names(shared):
            (part / name).parent.mkdir(exist_ok=True)
            own = settings.features / old / name
            if _expression(old) == _expression(wanted) and own.exists():
                os.link(own, part / name)
            else:
                missing.append(name)
        if missing:
            theirs = [(shared / name).path for name in missing]
            shared.fs.get(theirs, [str(part / name) for name in missing])
        with suppress(OSError):  # another process was quicker
            part.rename(settings.features / wanted)
    _remove(settings.features.glob(f"{view}.*.*"), {wanted, old})
    _point(link, wanted)


def publish(settings: Settings, view: str, wanted: str, old: str) -> None:
    """Put the folder `wanted` of `view` on S3; what it shares with `old` is copied there."""
    if not settings.data_url:
        return
    mine, shared = settings.features / wanted, _shared(settings)
    files, known = shared.fs, set(_names(shared / old)) if old else set()
    names = [path.relative_to(mine).as_posix() for path in mine.glob("*/*.parquet")]
    kept = {name for name in known.intersection(names) if _expression(old) == _expression(wanted)}
    new = [name for name in names if name not in kept]
    with reached(view):
        _remove([shared / wanted], set())  # what a killed one left
        files.put([str(mine / name) for name in new], [(shared / wanted / n).path for n in new])
        for name in kept:
            files.cp_file((shared / old / name).path, (shared / wanted / name).path)
        _remove(shared.glob(f"{view}.*.*"), {wanted, old})


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

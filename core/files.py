"""Files, on disk or on S3, that others read while they are written anew."""

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock
from upath import UPath

from core.errors import DataError

AT_ONCE = 8
"""Files that are fetched side by side."""
LONGEST = 300
RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


def location(address: str) -> UPath:
    """Return a folder or a file on disk, or at `s3://…`, which AWS's own variables describe."""
    if "://" not in address:
        return UPath(Path(address))
    from obstore.fsspec import register  # noqa: PLC0415  (0.1 s, and only of teams)

    register("s3")  # the library that Delta tables are reached by
    return UPath(address, retry_config=RETRIES)


def bucket_problem(address: str) -> str | None:
    """Say why an object cannot be written below `address` (`s3://…`); None if it can."""
    from obstore.store import from_url  # noqa: PLC0415

    within: Any = {"timeout": "4s", "connect_timeout": "3s", "allow_http": True}
    once: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=4)}
    try:
        with reached(address):
            store = from_url(address, client_options=within, retry_config=once)
            store.put("gyre", b"written by gyre up\n")
    except DataError as exc:
        return str(exc)
    return None


@contextmanager
def reached(what: str) -> Iterator[None]:
    """Raise DataError, of `what`, where S3 or a disk refuses."""
    try:
        yield
    except Exception as exc:
        if isinstance(exc, OSError) or type(exc).__module__ == "obstore.exceptions":
            # Of a folder.
            first = exc.args[0][0][2] if isinstance(exc, shutil.Error) else exc
            line = " ".join(str(first).partition("Debug source:")[0].split())
            raise DataError(f"{what}: {line[:LONGEST]}") from exc
        raise


def local_copies(paths: Iterable[UPath], cache: Path) -> list[str]:
    """Return files on this disk: of S3 copies, fetched where they are missing; they never change.

    cache: folder of the copies, each below the path that it has on S3.
    """
    paths = [*paths]
    if all(isinstance(path, Path) for path in paths):
        return [*map(str, paths)]
    with ThreadPoolExecutor(AT_ONCE) as threads, reached("files of a table"):
        return [*threads.map(partial(_local_copy, cache), paths)]


def _local_copy(cache: Path, path: UPath) -> str:
    copy = cache / path.path
    try:
        os.utime(copy)  # those not used for days are removed
    except FileNotFoundError:
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f".{uuid4()}.part")
        path.fs.get_file(path.path, str(part))
        part.replace(copy)
    return str(copy)


def replace_file(path: Path | UPath, content: str | bytes, mode: int = 0o666) -> None:
    """Write `path` in one step: a reader finds what was there before, or all of `content`.

    mode: permissions, as of the first byte; the umask takes from them.
    """
    # On S3, where a file appears when all of it is there.
    if not isinstance(path, Path):
        path.fs.pipe_file(
            path.path, content.encode() if isinstance(content, str) else content
        )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.part")
    part.touch(mode)
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def read_file(path: UPath) -> bytes:
    """Return what a file holds: the library's own files complain where there is none."""
    return bytes(path.fs.cat_file(path.path))


def replace_folder(target: UPath, source: Path) -> None:
    """Put a copy of `source` in place of what `target` holds; readers may meet a part of it."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        return
    with suppress(FileNotFoundError):
        target.fs.rm(target.path, recursive=True)
    target.fs.put(f"{source}/", f"{target.path}/", recursive=True)

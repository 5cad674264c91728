"""Files on disk or on S3: other processes read them while one replaces them."""

import atexit
import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from upath import UPath

from core.errors import DataError

FETCHING_THREADS = 8
LONGEST_MESSAGE = 300
END_SECONDS = 0.1
"""How long a process that used S3 waits at its end."""
ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "${": "${:-$}{"}
"""Escapes of texts that python-dotenv would change between double quotes."""
RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


def location(address: str) -> UPath:
    """Return a folder or a file on disk, or in a bucket, which the cloud's own variables describe."""
    if "://" not in address:
        return UPath(Path(address))
    from obstore.fsspec import register  # noqa: PLC0415  (0.1 s, and only teams need it)

    # With the library by which Delta tables reach buckets.
    register(address.partition("://")[0])
    _wait_at_end()
    return UPath(address, retry_config=RETRIES)


@cache
def _wait_at_end() -> None:
    """Let obstore hand over its last result: a thread that still does aborts an ending Python."""
    atexit.register(time.sleep, END_SECONDS)


def bucket_problem(address: str) -> str | None:
    """Return why no object can be written below `address` (`s3://…`); None: one can."""
    from obstore.store import from_url  # noqa: PLC0415

    client: Any = {"timeout": "4s", "connect_timeout": "3s", "allow_http": True}
    retries: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=4)}
    try:
        with reached(address):
            store = from_url(address, client_options=client, retry_config=retries)
            store.put("gyre", b"written by gyre up\n")
    except DataError as exc:
        return str(exc)
    return None


@contextmanager
def reached(place: str) -> Iterator[None]:
    """Raise an error of S3 or of a disk as DataError, in one line that begins with the place."""
    try:
        yield
    except Exception as exc:
        is_of_s3 = type(exc).__module__ == "obstore.exceptions"
        if not isinstance(exc, OSError) and not is_of_s3:
            raise
        # shutil.Error has an error for each file of a folder.
        error = exc.args[0][0][2] if isinstance(exc, shutil.Error) else exc
        line = " ".join(str(error).partition("Debug source:")[0].split())
        raise DataError(f"{place}: {line[:LONGEST_MESSAGE]}") from exc


def local_copies(paths: Iterable[UPath], cache: Path) -> list[str]:
    """Return paths of files on this disk: for a file on S3 its copy, which is fetched once.

    The files never change.

    Args:
        paths: The files.
        cache: Folder of the copies, each below the path that it has on S3.

    Raises:
        DataError: S3 or the disk refuses.

    """
    with ThreadPoolExecutor(FETCHING_THREADS) as threads, reached("files of a table"):
        return list(threads.map(partial(_local_copy, cache), paths))


def _local_copy(cache: Path, path: UPath) -> str:
    if isinstance(path, Path):
        return str(path)
    copy = cache / path.path
    try:
        os.utime(copy)  # `gyre maintain` removes copies that were not used for days
    except FileNotFoundError:
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f".{uuid4()}.part")
        path.fs.get_file(path.path, str(part))
        part.replace(copy)
    return str(copy)


def replace_file(path: Path | UPath, content: str | bytes, mode: int = 0o666) -> None:
    """Write `path` in one step: a reader finds the old content, or all of the new.

    Args:
        path: The file; its folder is made on a disk.
        content: Text is written in UTF-8.
        mode: Permissions from the first byte on; the umask takes from them.

    Raises:
        DataError: S3 refuses, or does not answer.

    """
    content_bytes = content.encode() if isinstance(content, str) else content
    if not isinstance(path, Path):  # on S3, where a file appears as a whole
        with reached(str(path)):
            path.fs.pipe_file(path.path, content_bytes)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.part")
    part.touch(mode)
    try:
        part.write_bytes(content_bytes)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def append_secrets(path: Path, variables: Mapping[str, str]) -> None:
    """Add lines to a `gyre.env`. Only the owner can read a new one, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    with path.open("a", encoding="utf-8") as file:
        for name, value in variables.items():
            text = value
            if shlex.quote(value) != value:
                for characters, escape in ESCAPES.items():
                    text = text.replace(characters, escape)
                text = f'"{text}"'
            file.write(f"\n{name}={text}\n")


def is_closed(file: Path) -> bool:
    """Say whether no writer has the file open: a writer holds a lock on it until it ends."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def read_file(path: UPath) -> bytes:
    """Return the content of a file; without one, `UPath.read_bytes` raises a confusing error.

    Raises:
        FileNotFoundError: There is none.
        DataError: S3 or the disk refuses, or S3 does not answer.

    """
    content = read_if_present(path)
    if content is None:
        raise FileNotFoundError(f"no file: {path}")
    return content


def read_if_present(path: UPath) -> bytes | None:
    """Return the content of a file; None: there is none.

    Raises:
        DataError: S3 or the disk refuses, or S3 does not answer.

    """
    with reached(str(path)):
        try:
            return bytes(path.fs.cat_file(path.path))
        except FileNotFoundError:
            return None

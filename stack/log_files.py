"""Append-only files of lines, from the reader's side; serving/prediction_log.py writes them."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def began(path: Path) -> int:
    """When the file was opened, as its name says: microseconds since 1970; 0 if it does not."""
    said = path.stem.rpartition("-")[2]
    return int(said) if said.isdecimal() else 0


def first_began(files: Iterable[Path]) -> datetime:
    """When the first of the files was opened: no table has a line of them from before."""
    return datetime.fromtimestamp(min(map(began, files)) / 1e6, UTC)


def is_closed(file: Path) -> bool:
    """The writer holds a lock on its open file, until it closes it or dies."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def final_lines(content: bytes, *, closed: bool) -> tuple[list[bytes], int]:
    """Lines of a file that will not change any more, and how many bytes they take.

    Every line that ends in a newline is final; in a closed file so is the rest behind the last.
    """
    *lines, unfinished = content.split(b"\n")
    if closed:
        return [line for line in (*lines, unfinished) if line], len(content)
    return [line for line in lines if line], len(content) - len(unfinished)

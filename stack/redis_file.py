"""Mends the file of Redis, then becomes Redis: `python -m stack.redis_file FOLDER COMMAND …`.

A disk that is full for a moment can leave a hole of null bytes in the append-only file. After a
rewrite, Redis (7 and later) and Valkey have the new file open without O_APPEND: where a write was
short, they cut its part off, but write on where that part had ended. They would not read their own
file at the next start. What stands before the hole was written again behind it.

Without a command, the file of a Redis that another container runs is mended, unless this Redis
answers: it may write.
"""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as UnreachableError

from core.files import replace_file
from core.settings import Settings, load_settings
from feature_repo.online_store import redis_client

HOLE = re.compile(rb"\0{8,}(?=[*#])")
"""Null bytes before a command. A value of a command may have such bytes, too."""
COUNT = re.compile(rb"[*](\d+)\r\n")
LENGTH = re.compile(rb"[$](\d+)\r\n")
LINE = re.compile(rb"#[^\n]*\n")
"""A note between commands, such as the time."""
DAMAGED = ".damaged"
"""End of the name of a file as it was."""


def mend(folder: Path, *, is_copied: bool) -> list[str]:
    """Take holes out of the append-only files of a folder.

    Args:
        folder: Where Redis has its files.
        is_copied: Whether the file as it was stays beside it.

    Returns:
        A message for each file that was mended.

    """
    messages = []
    for file in sorted(folder.glob("appendonlydir/*.incr.aof")):
        content = file.read_bytes()
        if not HOLE.search(content):
            continue
        mended = without_holes(content)
        if mended == content:
            continue
        message = (
            f"{file}: {len(content) - len(mended)} bytes of a write that a full disk cut short "
            "were taken out"
        )
        if is_copied:
            copy = file.with_name(
                f"{file.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}{DAMAGED}"
            )
            copy.hardlink_to(file)  # takes no room: the disk may be small
            message += f"; the file as it was: {copy}"
        owner = file.stat()
        replace_file(file, mended)
        os.chown(file, owner.st_uid, owner.st_gid)  # Redis may be another user
        messages.append(message)
    return messages


def remove_copies(folder: Path) -> None:
    """Remove the damaged files, which may have what Redis has forgotten."""
    for copy in folder.glob(f"appendonlydir/*{DAMAGED}"):
        copy.unlink()


def without_holes(content: bytes) -> bytes:
    """Return commands of Redis' file without holes, and without the part of a command before one."""
    parts = []
    place = 0
    while place < len(content):
        end = end_of_command(content, place)
        if end is None:
            hole = HOLE.search(content, place)
            if hole is None:  # the end of the file is cut, which Redis mends itself
                parts.append(content[place:])
                break
            place = hole.end()
        else:
            parts.append(content[place:end])
            place = end
    return b"".join(parts)


def end_of_command(content: bytes, place: int) -> int | None:
    """Return where the command, or the note, at a place ends; None: there is no whole one."""
    note = LINE.match(content, place)
    if note:
        return note.end()
    count = COUNT.match(content, place)
    if count is None:
        return None
    end = count.end()
    for _ in range(int(count[1])):
        length = LENGTH.match(content, end)
        if length is None:
            return None
        end = length.end() + int(length[1]) + 2
        if content[end - 2 : end] != b"\r\n":
            return None
    return end


def is_answering(settings: Settings) -> bool:
    """Return whether the Redis of an installation answers, and so may write its file.

    One that cannot be reached, or that still reads its file, does not.
    """
    try:
        with redis_client(settings) as redis:
            redis.ping()
    except UnreachableError as exc:
        return isinstance(exc, AuthenticationError)
    except RedisError:  # it is there, but slow
        return True
    return True


def main(folder: Path, command: list[str]) -> None:
    """Mend the files of a folder, and become the program of a command."""
    messages = []
    if command:
        messages = mend(folder, is_copied=True)
    elif not is_answering(load_settings()):
        # `gyre forget` does not reach this folder: no copy keeps what is forgotten.
        messages = mend(folder, is_copied=False)
    for message in messages:
        print(f"gyre: {message}", flush=True)  # noqa: T201
    if command:
        os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

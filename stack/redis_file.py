"""Mends the file of an own Redis, then becomes Redis: `python -m stack.redis_file FOLDER COMMAND …`.

A disk that is full for a moment can leave a hole of null bytes in the append-only file: where a
write was short, Redis cuts the file at the length of all its parts together, which lies behind the
end of the last one. It goes on behind the hole, and would not read its own file at the next start.
What stands before the hole was written again behind it.
"""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from core.files import replace_file

HOLE = re.compile(rb"\0{8,}(?=[*#])")
"""Null bytes before a command. A value of a command may have such bytes, too."""
COUNT = re.compile(rb"[*](\d+)\r\n")
LENGTH = re.compile(rb"[$](\d+)\r\n")
LINE = re.compile(rb"#[^\n]*\n")
"""A note between commands, such as the time."""
DAMAGED = ".damaged"
"""End of the name of a file as it was."""


def mend(folder: Path) -> list[str]:
    """Take holes out of the append-only files of a folder; the file as it was stays beside it.

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
        copy = file.with_name(
            f"{file.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}{DAMAGED}"
        )
        copy.hardlink_to(file)  # takes no room: the disk may be small
        replace_file(file, mended)
        messages.append(
            f"{file}: {len(content) - len(mended)} bytes of a write that a full disk cut short "
            f"were taken out; the file as it was: {copy}"
        )
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


if __name__ == "__main__":
    for message in mend(Path(sys.argv[1])):
        print(f"gyre: {message}", flush=True)  # noqa: T201
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606

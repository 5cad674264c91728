"""Files that others read while they are written anew."""

import os
from pathlib import Path


def replace_file(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write `path` in one step: a reader finds what was there before, or all of `content`.

    mode: permissions, as of the first byte; the umask takes from them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.part")
    part.touch(mode)
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)

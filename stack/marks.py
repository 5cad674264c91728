"""How a stack knows its own processes: by a mark in their environment, or by their session.

Standard library only. A shell that merely exported GYRE_HOME has neither. The session finds those
that overwrote their environment (Redis does); it counts only within the boot that recorded it.
"""

from __future__ import annotations

import os
from pathlib import Path

MARK = "GYRE_STACK"
"""Set only for what the supervisor starts: the stack's home."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def belongs(pid: int, home: Path) -> bool:
    """Say whether the stack of `home` started this process."""
    mark = f"{MARK}={home}".encode()
    try:
        if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return True
        return os.getsid(pid) == recorded_session(home)
    except OSError:  # gone, or somebody else's
        return False


def record_session(home: Path, leader: int) -> None:
    (home / "run" / "session").write_text(f"{_BOOT.read_text().strip()} {leader}")


def recorded_session(home: Path) -> int | None:
    try:
        boot, leader = (home / "run" / "session").read_text().split()
        return int(leader) if boot == _BOOT.read_text().strip() else None
    except (OSError, ValueError):
        return None

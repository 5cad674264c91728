"""Where the processes of one stack find each other without a port."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stack.settings import Settings

LONGEST = 100
"""Linux allows an address of 107 bytes, a suffix for a moment included."""


def socket_path(settings: Settings, name: str) -> Path:
    path = settings.home / "run" / f"{name}.sock"
    short = f"gyre-{os.getuid()}-{zlib.crc32(os.fsencode(path)):08x}.sock"
    fits = len(os.fsencode(path)) <= LONGEST
    return path if fits else Path(tempfile.gettempdir()) / short

"""Peak memory of the process that asks."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mb() -> float:
    """Most that was resident at once, in MB.

    Not getrusage: its peak is inherited from the process that started this one.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")

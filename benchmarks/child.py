"""A measurement in a process of its own, and what rounds of them come to."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from stack.settings import PROJECT

Rounds = list[dict[str, dict[str, float]]]
"""By peer what it measured; not every round has every peer."""


def child(module: str, *what: object, **environment: str) -> dict[str, float]:
    """What `module`, given `what`, measured: its last line, as JSON."""
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, what)]
    here = os.environ | environment
    done = subprocess.run(
        command, env=here, cwd=PROJECT, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{module} {what}: {done.stderr}")
    return dict[str, float](json.loads(done.stdout.splitlines()[-1]))


def peak_mb() -> float:
    """Most that was resident at once of the process that asks, in MB.

    Not getrusage: its peak is inherited from the process that started this one.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def medians(rounds: Rounds, peer: str, *names: str) -> list[float]:
    own = [each[peer] for each in rounds if peer in each]
    return [statistics.median(each[name] for each in own) for name in names]


def times(rounds: Rounds, peer: str, other: str, name: str) -> float:
    """Median of how many times that of `other` the figure of `peer` is, round by round."""
    both = (each for each in rounds if peer in each)
    return statistics.median(each[peer][name] / each[other][name] for each in both)

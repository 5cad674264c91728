"""A measurement in a process of its own, and what rounds of them come to."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

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


def medians(rounds: Rounds, peer: str, *names: str) -> list[float]:
    own = [each[peer] for each in rounds if peer in each]
    return [statistics.median(each[name] for each in own) for name in names]


def times(rounds: Rounds, peer: str, other: str, name: str) -> float:
    """Median of how many times that of `other` the figure of `peer` is, round by round."""
    both = (each for each in rounds if peer in each)
    return statistics.median(each[peer][name] / each[other][name] for each in both)

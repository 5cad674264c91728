"""A measurement in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from stack.settings import PROJECT


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

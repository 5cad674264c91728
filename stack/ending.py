"""Ending everything that a stack's supervisor started, however it was left."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from stack.preflight import belongs

if TYPE_CHECKING:
    from pathlib import Path

    from stack.settings import Settings

PATIENCE = 20.0
"""Seconds the supervisor is given to stop its children, which it kills after 8 of them."""


def end_stack(settings: Settings) -> list[str]:
    """End the stack of `settings.home`, and nothing else; one line for each process that ended."""
    pid = settings.home / "run" / "supervisord.pid"
    recorded = pid.read_text().strip() if pid.exists() else ""
    before = {process: title(process) for process in members(settings.home)}
    end([process for process in before if str(process.pid) == recorded], PATIENCE)
    end(members(settings.home), 3.0)
    pid.unlink(missing_ok=True)
    left = members(settings.home)
    return [f"{process.pid} {name[:90]}" for process, name in before.items() if process not in left]


def members(home: Path) -> list[psutil.Process]:
    """Return the living processes of this home's stack, never this one or those above it."""
    own = [psutil.Process(), *psutil.Process().parents()]
    return [p for p in psutil.process_iter() if belongs(p.pid, home) and p not in own]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone
        return ""


def end(processes: list[psutil.Process], patience: float) -> None:
    """Ask them to stop; kill those that have not after `patience` seconds."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=patience)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)

"""Ending everything that a stack's supervisor started, however it was left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil

from stack.marks import belongs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stack.settings import Settings

PATIENCE = 20.0
"""Seconds the supervisor is given to stop its children, which it kills after 8 of them."""


def end_stack(settings: Settings) -> list[str]:
    """End the stack of `settings.home`, and nothing else; one line for each process that ended."""
    run = settings.home / "run"
    before = members(settings.home)
    names = {process.pid: _describe(process) for process in before}
    supervisor = [p for p in before if p.pid == _recorded(run / "supervisord.pid")]
    _terminate(supervisor, PATIENCE)
    left = members(settings.home)
    _terminate(left, 3.0)
    ended = [process for process in before if not _alive(process)]
    (run / "session").unlink(missing_ok=True)
    (run / "supervisord.pid").unlink(missing_ok=True)
    return [names[process.pid] for process in ended]


def members(home: Path) -> list[psutil.Process]:
    """Return the living processes of this home's stack, never this one or those above it."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for process in psutil.process_iter()
        if process.pid not in own and belongs(process.pid, home) and _alive(process)
    ]


def end_leftover_workers(home: Path) -> None:
    """End task processes that outlived their scheduler: their tasks are about to run again."""
    titles = ("airflow worker --", "airflow task")
    _terminate([p for p in members(home) if _describe(p).partition(" ")[2].startswith(titles)], 3.0)


def _terminate(processes: Iterable[psutil.Process], patience: float) -> None:
    wanted = list(processes)
    for process in wanted:
        _signal(process, "terminate")
    _, stubborn = psutil.wait_procs(wanted, timeout=patience)
    for process in stubborn:
        _signal(process, "kill")
    psutil.wait_procs(stubborn, timeout=5)


def _signal(process: psutil.Process, name: str) -> None:
    try:
        getattr(process, name)()
    except psutil.NoSuchProcess:
        return


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:90] or process.name()}"
    except psutil.Error:
        return str(process.pid)


def _recorded(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None

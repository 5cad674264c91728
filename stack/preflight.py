"""What must be true before anything is installed or started. Standard library only.

Each problem is one line: what is wrong, and what to do. Nothing is changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from stack.marks import belongs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROJECT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = (3, 11), (3, 13)
ROOM_BYTES = 4 * 10**9
PORTS = {"SERVING": 8000, "MLFLOW": 5000, "AIRFLOW": 8080, "REDIS": 6379}


def home_of(env: Mapping[str, str]) -> Path:
    return Path(env.get("GYRE_HOME") or PROJECT / ".gyre").expanduser().resolve()


def problems(
    env: Mapping[str, str], python: tuple[int, int], project: Path = PROJECT, *, ports: bool = True
) -> list[str]:
    """Return everything that stands in the way, one line each; an empty list is good."""
    home = home_of(env)
    found = python_problems(python)
    if not found:  # an old one could not even run what follows
        found = disk_problems(home, project) + (port_problems(env, home) if ports else [])
    return found


def python_problems(version: tuple[int, int]) -> list[str]:
    if not OLDEST <= version <= NEWEST:
        want = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        have = ".".join(map(str, version))
        return [f"Python {want} is needed, this is {have}: make up PYTHON=/path/to/python3.11"]
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    return [f"Python's module {name} is missing: apt-get install python3-venv" for name in missing]


def disk_problems(home: Path, project: Path, room: int = ROOM_BYTES) -> list[str]:
    found = []
    installed = (project / ".venv" / "gyre.stamp").exists()
    for folder, variable in ((project, ""), (home, "GYRE_HOME")):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        remedy = f"set {variable} to another folder" if variable else "clone to another folder"
        if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
            found.append(f"{there} cannot be written: {remedy}")
        free = shutil.disk_usage(there).free
        needed = room if not installed else room // 4  # the environment is there already
        if free < needed:
            found.append(f"{there} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
                         f"free some, or {remedy}")  # fmt: skip
    return found


def port_problems(env: Mapping[str, str], home: Path) -> list[str]:
    """Ports that our processes will listen on and that someone else holds."""
    found, seen = [], dict[int, str]()
    for name, default in PORTS.items():
        variable = f"GYRE_{name}_PORT"
        if env.get(f"GYRE_{name}_URL") or (name == "REDIS" and env.get("REDIS_URL")):
            continue  # somebody else's: used, not started
        text = env.get(variable) or str(default)
        if not text.isdecimal() or not 0 < int(text) < 2**16:
            found.append(f"{variable} is {text!r}: expected a port, 1 to 65535")
        elif (port := int(text)) in seen:
            found.append(f"{variable} and {seen[port]} are both {port}: give one another port")
        else:
            seen[port] = variable
            found += taken(port, name, variable, home)
    return found


def taken(port: int, name: str, variable: str, home: Path) -> list[str]:
    if not _in_use(port):
        return []
    holders = sorted(_holders(port))
    if holders and all(belongs(pid, home) for pid in holders):
        return []
    who = ", ".join(f"{pid} ({_name(pid)})" for pid in holders) or "unknown"
    remedy = f"stop it, or set {variable} to a free port"
    return [f"port {port} ({name.lower()}) is taken by process {who}: {remedy}"]


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closing one is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _holders(port: int) -> set[int]:
    """Return the processes with a listening socket on `port` (Linux; elsewhere none are known)."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            fields = [row.split() for row in rows]
            inodes |= {
                f"socket:[{f[9]}]"
                for f in fields
                if f[3] == "0A" and int(f[1].rpartition(":")[2], 16) == port
            }
    return {pid for pid, link in _open_files() if link in inodes} if inodes else set()


def _open_files() -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for file in folder.iterdir():
                with contextlib.suppress(OSError):
                    yield int(folder.parent.name), str(file.readlink())


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "?"

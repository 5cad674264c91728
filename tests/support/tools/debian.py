"""Programs of Debian's packages that tests start."""

import os
import subprocess

from filelock import FileLock

LOCK = "/tmp/gyre-tests-apt.lock"
"""Workers install one after the other."""
TARGET = "TEST_TARGET"
"""Variable with the make target whose tests run (tests/conftest.py)."""
NO_SERVICES = {"RUNLEVEL": "1"}
"""With it Debian starts no service that it installs."""


def install(*packages: str) -> None:
    """Install packages without what they only recommend."""
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    if os.geteuid() != 0:
        apt = ["sudo", *apt]
    variables = os.environ | {"DEBIAN_FRONTEND": "noninteractive"} | NO_SERVICES
    with FileLock(LOCK, mode=0o666):
        subprocess.run([*apt, "update"], check=True, env=variables)
        command = [*apt, "install", "-y", "--no-install-recommends", *packages]
        subprocess.run(command, check=True, env=variables)


def of_journeys(program: str) -> None:
    """Fail in a run of `make test`, which starts what Python packages bring, and nothing else."""
    is_refused = os.environ.get(TARGET) == "test"
    assert not is_refused, f"{program} is no Python package: mark the test journey"

"""kustomize 5, where there is one."""

import re
import shutil
import subprocess

import pytest

NEEDED = (1, 27)
"""Of kubectl, whose kustomize is then 5."""


@pytest.fixture(scope="session")
def kustomize():
    """The command that builds an overlay."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        version = re.search(r"v(\d+)\.(\d+)", run(["kubectl", "version", "--client"]))
        if version and tuple(map(int, version.groups())) >= NEEDED:
            return ["kubectl", "kustomize"]
    pytest.skip("neither kustomize nor a kubectl of 1.27 or later is here")


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout

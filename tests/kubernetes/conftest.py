"""kubectl, whose kustomize builds an overlay, and Helm."""

import platform
import subprocess

import pytest

from tests.support.kubernetes.programs import kubectl_and_helm


@pytest.fixture(scope="session")
def programs():
    """The folder of kubectl and Helm, whose package has them for one processor."""
    if platform.machine() != "x86_64":
        pytest.skip(f"kubectl is for x86-64, this is {platform.machine()}")
    return kubectl_and_helm()


@pytest.fixture(scope="session")
def kustomize(programs):
    """The command that builds an overlay."""
    return [programs / "kubectl", "kustomize"]


@pytest.fixture(scope="session")
def helm(programs):
    """The path of Helm."""
    return programs / "helm"


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout

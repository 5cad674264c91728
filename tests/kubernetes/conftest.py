"""kustomize 5: that of the PATH, or Debian's package of trixie, unpacked and not installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = (1, 27)
"""Of kubectl, whose kustomize is then 5."""


@pytest.fixture(scope="session")
def kustomize(tmp_path_factory):
    """The command that builds an overlay."""
    if found := shutil.which("kustomize"):
        return [found, "build"]
    if kubectl := shutil.which("kubectl"):
        version = re.search(r"v(\d+)\.(\d+)", run([kubectl, "version", "--client"]))
        if version and tuple(map(int, version.groups())) >= NEEDED:
            return [kubectl, "kustomize"]
    return [_of_debian(tmp_path_factory.mktemp("kustomize")), "build"]


def _of_debian(folder: Path) -> Path:
    """By apt, from the mirror that this machine uses."""
    if not shutil.which("apt-get"):
        pytest.skip("neither a kustomize 5 nor apt is here")
    known = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    )
    mirrors = [
        line for line in known.splitlines() if line.rstrip("/").endswith("/debian")
    ]
    if not mirrors:
        pytest.skip("neither a kustomize 5 nor a mirror of Debian is here")
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources").write_text(f"deb {mirrors[0]} trixie main\n")
    options = {
        "Dir::Etc::SourceList": folder / "sources",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
    }
    apt = [
        "apt-get",
        "--quiet=2",
        *(f"--option={name}={value}" for name, value in options.items()),
    ]
    run([*apt, "update"])
    run([*apt, "download", "kustomize"], cwd=folder)
    (package,) = folder.glob("kustomize_*.deb")
    run(["dpkg", "--extract", package, folder / "root"])
    return folder / "root" / "usr" / "bin" / "kustomize"


def run(command, cwd=None):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout

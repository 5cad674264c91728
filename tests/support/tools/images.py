"""Images built by buildah from a stand-in base, as root."""

import os
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import pytest

from core.project import CLONE

BASE = os.environ.get("BASE") or "localhost/debian-python:bookworm"
"""The latter is made of Debian's packages unless it is there: no registry need be reached."""
CLONE_ID = f"{crc32(str(CLONE).encode()):08x}"
"""In names of images and containers: two clones may be tested at once."""
DEBOOTSTRAP = """
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm
"""
CONF = """
[containers]
default_ulimits = ["nofile=1024:20000", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
PIP = (
    "/etc/ssl/certs",
    "/etc/pip.conf",
    "/root/.config/pip",
    "/etc/uv",
    "/root/.config/uv",
)
"""How packages are reached from this machine, which is not the Dockerfile's to know."""
BUILDAH = "buildah bud --isolation chroot --format docker --layers"


def run(*command: str | Path, ends: float = 600) -> str:
    """Return what a command printed; it must succeed."""
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=ends
    )
    output = f"{done.stdout[-2000:]} {done.stderr[-4000:]}"
    assert done.returncode == 0, f"{command}: {output}"
    return done.stdout.strip()


def podman(*arguments: str | Path, ends: float = 600) -> str:
    """Return what podman printed; it must succeed."""
    return run("podman", *arguments, ends=ends)


@contextmanager
def base_image(folder: Path) -> Iterator[str]:
    """The image that all others begin with; podman and buildah are set up for this machine."""
    (folder / "containers.conf").write_text(CONF)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
        images = podman("images", "--format={{.Repository}}:{{.Tag}}")
        if BASE.startswith("localhost/") and BASE not in images:
            root = folder / "root"
            run(*DEBOOTSTRAP.split(), root, ends=900)
            run("tar", "-C", root, "-cf", folder / "root.tar", ".")
            podman("import", "--quiet", folder / "root.tar", BASE)
            run("rm", "-r", root, folder / "root.tar")
        yield BASE


def image_builder(base: str, folder: Path) -> Callable[[str], str]:
    """Return what builds a target of deploy/Dockerfile, and returns the image's name.

    Args:
        base: The image that all others begin with.
        folder: For files that a build reads. Layers are used again.

    """
    (folder / "uv.toml").write_text("system-certs = true\n")
    mounts = {path: path for path in PIP if Path(path).exists()}
    mounts |= {str(folder): "/etc/uv"} if "/etc/uv" not in mounts else {}
    cache = Path(os.environ.get("UV_CACHE_DIR", CLONE / ".uv-cache"))
    mounts |= {f"{cache}": "/root/.cache/uv:O"} if cache.is_dir() else {}
    return lambda target: _build(base, target, mounts)


def _build(base: str, target: str, mounts: dict[str, str]) -> str:
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    revision = run("git", "-C", CLONE, "rev-parse", "HEAD")
    image = f"localhost/gyre-{target}:test-{CLONE_ID}"
    command = [
        *BUILDAH.split(),
        f"--build-arg=BASE={base}",
        f"--build-arg=VERSION={project['version']}",
        f"--build-arg=REVISION={revision}",
        f"--target={target}",
        f"--tag={image}",
        f"--file={CLONE}/deploy/Dockerfile",
    ]
    command += [f"--volume={here}:{there}" for here, there in mounts.items()]
    run(*command, CLONE, ends=900)
    return image

"""Images built by buildah from a stand-in base and run by podman, as root: `make containers`."""

import os
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import pytest
import yaml

from core.project import CLONE
from tests.conftest import BIN
from tests.serving.conftest import rig  # noqa: F401  (a fixture)

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


def run(*command, ends=600):
    """Return what a command printed; it must succeed."""
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=ends
    )
    output = f"{done.stdout[-2000:]} {done.stderr[-4000:]}"
    assert done.returncode == 0, f"{command}: {output}"
    return done.stdout.strip()


def podman(*arguments, ends=600):
    return run("podman", *arguments, ends=ends)


def logs(name):
    """What a container's main process wrote."""
    command = ["podman", "logs", name]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The image that all others begin with; podman and buildah are set up for this machine."""
    folder = tmp_path_factory.mktemp("base")
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


@pytest.fixture(scope="session")
def build(base, tmp_path_factory):
    """Build a target of deploy/Dockerfile; return the image's name. Layers are used again."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "uv.toml").write_text("system-certs = true\n")
    mounts = {path: path for path in PIP if Path(path).exists()}
    mounts |= {str(folder): "/etc/uv"} if "/etc/uv" not in mounts else {}
    cache = Path(os.environ.get("UV_CACHE_DIR", CLONE / ".uv-cache"))
    mounts |= {f"{cache}": "/root/.cache/uv:O"} if cache.is_dir() else {}
    return lambda target: _build(base, target, mounts)


def _build(base, target, mounts):
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


@contextmanager
def container(name, image, *arguments, network="host"):
    """A container with a read-only root, by default on the host's network; gone after the block."""
    podman("rm", "--force", "--ignore", "--time=0", name)
    options = ("--detach", "--read-only", f"--network={network}", f"--name={name}")
    podman("run", *options, *arguments, image)
    try:
        yield
    finally:
        sys.stdout.write(logs(name))  # pytest shows it where a test fails
        podman("rm", "--force", "--time=0", name)


@pytest.fixture(scope="session")
def stand_ins(base, tmp_path_factory):
    """Images under the names that deploy/compose.yaml has, of Debian's packages and moto."""
    folder = tmp_path_factory.mktemp("stand-ins")
    here = Path(__file__).parent / "stand-ins"
    run("cp", *here.iterdir(), folder)
    (folder / "s3.in").write_text("moto[s3]\nflask\nflask-cors\n")
    fixed = ["--constraints", CLONE / "requirements.lock", "--generate-hashes"]
    where = ["--python-version=3.11", "--quiet", f"--output-file={folder / 's3.lock'}"]
    run(BIN / "uv", "pip", "compile", folder / "s3.in", *fixed, *where)
    command = [*BUILDAH.split(), f"--build-arg=BASE={base}"]
    command += [f"--volume={path}:{path}" for path in PIP if Path(path).exists()]
    compose = yaml.safe_load((CLONE / "deploy" / "compose.yaml").read_text())
    for name in ("postgres", "redis", "nginx", "s3"):
        image = compose["services"][name]["image"]
        image = image.removeprefix("${S3_IMAGE:-").removesuffix("}")
        run(*command, f"--target={name}", f"--tag={image}", folder, ends=900)

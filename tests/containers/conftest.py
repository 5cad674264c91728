"""Images built by buildah from a stand-in base and run by podman, as root: `make containers`."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from core.project import CLONE
from tests.conftest import BIN
from tests.serving.conftest import rig  # noqa: F401  (a fixture)
from tests.support.tools.images import (
    BUILDAH,
    PIP,
    base_image,
    image_builder,
    podman,
    run,
)


def logs(name):
    """What a container's main process wrote."""
    command = ["podman", "logs", name]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The image that all others begin with; podman and buildah are set up for this machine."""
    with base_image(tmp_path_factory.mktemp("base")) as image:
        yield image


@pytest.fixture(scope="session")
def build(base, tmp_path_factory):
    """Build a target of deploy/Dockerfile; return the image's name. Layers are used again."""
    return image_builder(base, tmp_path_factory.mktemp("build"))


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

"""A wheel of the project, in an environment that has nothing of the clone."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from core.settings import CLONE
from tests.conftest import BIN

DATA_FILES = (
    "cli/templates/dataset.py.jinja",
    "feature_repo/expectations/orders.json",
    "feature_repo/feature_store.yaml",
    "monitoring/console/templates/index.html",
    "training/stages/model_card.html",
)


PASSED_ON = ("HOME", "PATH", "UV_CACHE_DIR", "UV_SYSTEM_CERTS")


def run(*command, **settings):
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env = passed_on | settings
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def wheel(tmp_path):
    source = tmp_path / "source"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "tests", "site")
    shutil.copytree(CLONE, source, ignore=hidden)  # a build leaves files in it
    command = ("build", "--wheel", "--no-build-isolation", "--out-dir", tmp_path)
    run(BIN / "uv", *command, source, VIRTUAL_ENV=str(BIN.parent))
    (file,) = tmp_path.glob("gyre-*.whl")
    return file


def test_a_wheel_holds_templates_and_other_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert not {*DATA_FILES} - {*names}
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


@pytest.mark.nightly
def test_a_wheel_installed_into_an_empty_environment_has_the_gyre_command(
    wheel, tmp_path
):
    environment = tmp_path / "environment"
    uv = str(BIN / "uv")
    run(uv, "venv", "--python", sys.executable, environment)
    target = ("pip", "install", "--quiet", "--python", environment, "--no-deps")
    locked = ("--require-hashes", "--requirements", CLONE / "requirements.lock")
    run(uv, *target, *locked)
    run(uv, *target, wheel)
    help_text = run(environment / "bin" / "gyre", "--help", GYRE_HOME=str(tmp_path))
    assert "Every day" in help_text

"""The wheel: what it holds, and an installation of it that has nothing of the clone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from core.project import CLONE, SHIPPED
from core.settings import PORTS, free_ports
from tests.conftest import BIN
from tests.support.tools.clone import few_orders, fewer_trees, online_answer

PACKAGES = (
    "cli", "core", "dags", "feature_engine", "feature_repo", "gyre", "mlflow_server",
    "monitoring", "operations", "serving", "stack", "training",
)  # fmt: skip
HINDERING = ("GYRE_", "MLFLOW_", "PROMETHEUS_", "PYTHON", "VIRTUAL_ENV")
"""Beginnings of variables of the clone."""
HELPER = "LARGEST = 100_000.0\n"
"""A module of a project whose folder has the name of a package of Gyre."""


def run(*command, folder=None, code=0, **settings):
    """Return what a command prints in an environment that has no setting of the clone."""
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(HINDERING)
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=passed_on | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, as `make wheel` builds it, of a copy of the clone: a build leaves files there."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = {"docs", "site", "tests", "dist"}

    def hidden(parent, names):
        is_root = parent == str(CLONE)
        return {
            name
            for name in names
            if name == "__pycache__"
            or (is_root and (name.startswith(".") or name in left_out))
        }

    shutil.copytree(CLONE, source, ignore=hidden, symlinks=True)
    command = ("build", "--quiet", "--no-build-isolation", "--out-dir", folder / "dist")
    run(BIN / "uv", *command, source, VIRTUAL_ENV=str(BIN.parent))
    (file,) = folder.glob("dist/gyre_loop-*.whl")
    return file


def test_the_wheel_holds_each_file_of_the_packages_and_of_the_example(wheel):
    names = {
        name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name
    }
    files = [path for part in PACKAGES for path in (CLONE / part).rglob("*")]
    expected = {
        path.relative_to(CLONE).as_posix()
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected


def test_shipped_files_are_those_of_the_clone(wheel):
    archive = zipfile.ZipFile(wheel)
    for file in (path for path in SHIPPED.rglob("*") if path.is_file()):
        assert file.is_symlink()
        name = file.relative_to(SHIPPED)
        assert archive.read(f"gyre/shipped/{name}") == (CLONE / name).read_bytes()


def pins(file):
    """The versions of a lock file, or of the constraints, by package."""
    text = (CLONE / file).read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==([^\s;]+)", text, re.MULTILINE))


def test_constraints_hold_the_versions_that_were_tested():
    constrained = pins("constraints.txt")
    for lock in ("requirements.lock", "extras.lock", "spark.lock", "deploy/gyre.lock"):
        tested = pins(lock)
        for installer in ("uv", "setuptools"):  # they stay out of an installation
            tested.pop(installer, None)
        assert tested.items() <= constrained.items(), lock
    assert {"mypy", "google-auth", "docker"} <= constrained.keys()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of a `gyre` command that `uv tool install` made of the wheel and the constraints."""
    folder = tmp_path_factory.mktemp("tool")
    options = (
        "--quiet",
        "--python",
        sys.executable,
        "--constraints",
        CLONE / "constraints.txt",
    )
    places = {
        "UV_TOOL_DIR": str(folder / "tools"),
        "UV_TOOL_BIN_DIR": str(folder / "bin"),
    }
    run(BIN / "uv", "tool", "install", *options, wheel, **places)
    return folder / "bin"


class Shop:
    """A project that an installed Gyre wrote, in a stack of its own."""

    def __init__(self, commands, parent):
        self.folder = parent / "shop"
        self._commands = commands
        self._ports = {
            f"GYRE_{name.upper()}": str(port) for name, port in free_ports().items()
        }
        self.gyre("init", "shop", folder=parent)

    def gyre(self, *arguments, folder=None, code=0):
        command = (self._commands / "gyre", *arguments)
        return run(*command, folder=folder or self.folder, code=code, **self._ports)

    def address(self, program):
        assert program in PORTS
        return f"http://127.0.0.1:{self._ports[f'GYRE_{program.upper()}_PORT']}"


@pytest.mark.nightly
def test_an_installed_gyre_goes_from_init_to_a_prediction_and_beyond(
    installed, tmp_path
):
    outside = run(installed / "gyre", "status", folder=tmp_path, code=2)
    assert "this folder is in no project" in outside
    shop = Shop(installed, tmp_path)
    assert ".gyre" in (shop.folder / ".gitignore").read_text()
    few_orders(shop.folder / "data" / "orders.parquet")
    fewer_trees(shop.folder / "models" / "orders.toml")
    try:
        assert "orders: version 1 is in production" in shop.gyre("up")
        body = {"customer_id": 51}
        answer = online_answer(f"{shop.address('serving')}/predict", body)
        assert answer["model_version"] == "1"
        inside = shop.folder / "models"
        report = shop.gyre("train", "orders", "--force", folder=inside)
        assert "version 2" in report
        assert "version 2" in shop.gyre("monitor", "orders")
        assert "files" in shop.gyre("backup", str(tmp_path / "backup.tar"))
        assert "0 differences" in shop.gyre("parity", "orders")
    finally:
        shop.gyre("down")


@pytest.mark.nightly
def test_folders_with_names_of_gyre_are_told_where_a_dataset_imports_them(
    installed, tmp_path
):
    shop = Shop(installed, tmp_path)
    for name in ("features", "training", "core"):
        package = shop.folder / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "limits.py").write_text(HELPER)
    assert "orders: ok" in shop.gyre("check")
    dataset = shop.folder / "feature_repo" / "datasets" / "orders.py"
    text = dataset.read_text()
    first = "from __future__ import annotations\n"
    dataset.write_text(
        text.replace(first, f"{first}from features.limits import LARGEST\n")
    )
    assert "orders: ok" in shop.gyre("check")
    for name in ("training", "core"):
        line = f"from {name}.limits import LARGEST\n"
        dataset.write_text(text.replace(first, first + line))
        report = shop.gyre("check", code=1)
        assert (
            f"not {shop.folder / name}: give the folder of the project another name"
            in report
        )

"""The contracts of `make check` know every package, so a new one cannot escape them."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def test_every_package_is_in_the_contracts_and_is_installed():
    contracts = configparser.ConfigParser()
    contracts.read(PROJECT / ".importlinter")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]
    packages = {path.parent.name for path in PROJECT.glob("*/__init__.py")}
    assert set(contracts["importlinter"]["root_packages"].split()) == packages
    installed = project["setuptools"]["packages"]
    assert {name.split(".")[0] for name in installed} == packages
    assert set(project["mypy"]["packages"]) == packages | {"docs"}


def locked(file):
    """Name and version of each package; there may be one for each version of Python."""
    line = r"^([a-z0-9-]+)(?:\[.*?\])?==(\S+)"
    return {*re.findall(line, (PROJECT / file).read_text(), re.MULTILINE)}


@pytest.mark.parametrize("image", ["serving", "gyre"])
def test_an_image_has_the_versions_that_are_tested(image):
    tested = locked("requirements.lock") | locked("extras.lock") | locked("dev.lock")
    known = {name for name, _ in tested}
    extra = locked(f"deploy/{image}.lock") - tested
    assert {name for name, _ in extra}.isdisjoint(known), "make lock"
    assert bool(extra) == (image == "gyre"), (
        "only those of Celery, of Kubernetes and of excluded.txt are not tested here"
    )


def test_locks_of_extra_packages_keep_the_base_versions():
    base = locked("requirements.lock")
    names = {name for name, _ in base}
    for file in ("extras.lock", "dev.lock", "spark.lock"):
        shared = {pair for pair in locked(file) if pair[0] in names}
        assert shared <= base, f"{file}: make lock"
    lines = (PROJECT / "excluded.txt").read_text().splitlines()
    assert names.isdisjoint(line for line in lines if not line.startswith("#"))
    assert len(names) <= 230  # with those of other systems and Pythons

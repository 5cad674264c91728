"""The contracts of `make check` know every package, so a new one cannot escape them."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def packages() -> set[str]:
    return {path.parent.name for path in PROJECT.glob("*/__init__.py")}


def test_every_package_is_in_the_contracts_and_is_installed():
    contracts = configparser.ConfigParser()
    contracts.read(PROJECT / ".importlinter")
    assert set(contracts["importlinter"]["root_packages"].split()) == packages()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]} == packages()
    assert set(project["tool"]["mypy"]["packages"]) == packages()

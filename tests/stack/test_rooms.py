"""The contracts of `make check` know every room, so a new one cannot escape them."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def rooms() -> set[str]:
    return {path.parent.name for path in PROJECT.glob("*/__init__.py")}


def test_every_room_is_in_the_contracts_and_in_the_package():
    contracts = configparser.ConfigParser()
    contracts.read(PROJECT / ".importlinter")
    assert set(contracts["importlinter"]["root_packages"].split()) == rooms()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]} == rooms()
    assert set(project["tool"]["mypy"]["packages"]) == rooms()

"""Lists of packages, modules and files, which would go stale in silence, against the tree."""

import ast
import configparser
import re
import tomllib
from importlib.util import find_spec

import pytest
import yaml
from setuptools import find_packages

from cli.main import PANELS
from core.additions import ADDITIONS
from core.project import CLONE
from stack.programs import PROGRAMS

PROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text())
TOOLS = PROJECT["tool"]
ROOTS = {path.parent.name for path in CLONE.glob("*/__init__.py")}
DOCKERFILE = (CLONE / "deploy" / "Dockerfile").read_text()


def packages():
    """Dotted names of the folders that have an `__init__.py`."""
    names = set()
    for root in ROOTS:
        for file in (CLONE / root).rglob("__init__.py"):
            if (CLONE / "cli" / "templates") not in file.parents:
                names.add(".".join(file.parent.relative_to(CLONE).parts))
    return names


def file_of(module):
    """The file of one of our modules; None of another."""
    path = CLONE.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.exists()), None)


def imported_modules(file):
    """Our modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(node.module)
    return {name for name in names if file_of(name)}


def test_every_package_is_installed_typed_and_in_the_contracts():
    contracts = configparser.ConfigParser()
    contracts.read(CLONE / ".importlinter")
    assert set(contracts["importlinter"]["root_packages"].split()) == ROOTS
    patterns = TOOLS["setuptools"]["packages"]["find"]["include"]
    assert set(find_packages(str(CLONE), include=patterns)) == packages()
    assert set(TOOLS["mypy"]["packages"]) == ROOTS | {"docs"}


def test_a_deprecation_in_every_package_is_an_error():
    filters = TOOLS["pytest"]["ini_options"]["filterwarnings"]
    matches = [re.search(r":\((.*)\)", line) for line in filters]
    package_sets = [set(match[1].split("|")) for match in matches if match]
    assert package_sets == [ROOTS, ROOTS]


def test_modules_that_are_measured_or_banned_exist():
    lint = TOOLS["ruff"]["lint"]
    banned = lint["flake8-tidy-imports"]["banned-module-level-imports"]
    banned_modules = [name for name in banned if name.partition(".")[0] in ROOTS]
    modules = [*TOOLS["coverage"]["run"]["source_pkgs"], *banned_modules]
    assert len(modules) > 4
    assert [name for name in modules if file_of(name) is None] == []
    paths = [path for path in lint["per-file-ignores"] if path.endswith(".py")]
    assert [path for path in paths if not (CLONE / path).exists()] == []


@pytest.mark.parametrize("package", TOOLS["setuptools"]["package-data"])
def test_data_of_a_package_is_there(package):
    folder = CLONE.joinpath(*package.split("."))
    for pattern in TOOLS["setuptools"]["package-data"][package]:
        assert [*folder.glob(pattern)], pattern


def test_entry_points_are_there():
    points = dict(PROJECT["project"]["scripts"])
    for group in PROJECT["project"]["entry-points"].values():
        points |= group
    modules = [point.partition(":")[0] for point in points.values()]
    assert [name for name in modules if file_of(name) is None] == []


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_command_of_a_program_is_there(program):
    words = program.command.split()
    verbs = set().union(*PANELS.values())
    if words[0] == "gyre":
        assert words[1] in verbs
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None


def test_classes_that_feast_is_told_of_are_there():
    text = (CLONE / "feature_repo" / "feature_store.yaml").read_text()
    parts = yaml.safe_load(text).values()
    types = [part.get("type", "") for part in parts if isinstance(part, dict)]
    class_paths = [name for name in types if name.partition(".")[0] in ROOTS]
    assert class_paths
    for name in class_paths:
        module, _, class_name = name.rpartition(".")
        assert f"class {class_name}(" in file_of(module).read_text()


def test_the_image_of_serving_has_every_package_that_a_worker_imports():
    (copied,) = re.findall(r"cp -a ([\w\s\\]*?)/opt/serving", DOCKERFILE)
    routes = [route for addition in ADDITIONS for route in addition.routes]
    remaining = ["serving.__main__", "serving.versions.fetch", *routes]
    reached = set()
    while remaining:
        module = remaining.pop()
        if module not in reached:
            reached.add(module)
            remaining += imported_modules(file_of(module))
    roots = {module.partition(".")[0] for module in reached}
    assert roots <= set(copied.split()), copied


def test_the_images_are_given_every_package():
    lines = (CLONE / ".dockerignore").read_text().split()
    assert {f"!{root}" for root in ROOTS} <= set(lines)

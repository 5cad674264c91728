"""The loop names its additions in one table alone; its commands and DAGs do without them."""

import ast
import importlib
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from cli.main import PANELS
from core.additions import ADDITIONS, is_present
from stack.programs import PROGRAMS
from stack.supervisor import Program

CLONE = Path(__file__).resolve().parents[2]
LOOP = (
    "core",
    "feature_repo",
    "mlflow_server",
    "training",
    "serving",
    "monitoring",
    "stack",
)
FOLDERS = [Path(*addition.package.split(".")) for addition in ADDITIONS]
PACKAGES = "|".join(re.escape(addition.package) for addition in ADDITIONS)
NAMES_AN_ADDITION = re.compile(rf"({PACKAGES})([.:]\w+)*")
"""A whole text such as `monitoring.console` or `feature_engine.events.program:CONSUMER`."""


def modules_of(package):
    """Return the modules of a package by their path in the clone, but those of additions."""
    for file in (CLONE / package).rglob("*.py"):
        path = file.relative_to(CLONE)
        if not any(path.is_relative_to(folder) for folder in FOLDERS):
            yield path


def texts_of(path):
    """Return the text literals of a module; a whole docstring never names a module alone."""
    for node in ast.walk(ast.parse((CLONE / path).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_for_types(statement):
    return (
        isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
    )


def imports_at_head(path):
    """Return what a module imports while it is imported itself, but for types."""
    statements = ast.parse((CLONE / path).read_text()).body
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from (f"{statement.module}.{name.name}" for name in statement.names)
        elif not isinstance(statement, ast.FunctionDef) and not is_for_types(statement):
            inner = ast.iter_child_nodes(statement)
            statements += [node for node in inner if isinstance(node, ast.stmt)]


def additions_in(package, names_of):
    """Return the names of additions' modules that modules of a package have, by their path."""
    named = {
        str(path): [
            name for name in names_of(path) if NAMES_AN_ADDITION.fullmatch(name)
        ]
        for path in modules_of(package)
    }
    return {path: names for path, names in named.items() if names}


@pytest.mark.parametrize("package", LOOP)
def test_no_module_of_the_loop_but_the_table_names_an_addition_in_a_text(package):
    # code_hash lists modules that change no model, and imports none of them.
    allowed_modules = {"core/additions.py", "training/code_hash.py"}
    assert additions_in(package, texts_of).keys() <= allowed_modules


@pytest.mark.parametrize("package", ["cli", "dags"])
def test_commands_and_dags_import_additions_inside_functions_alone(package):
    assert additions_in(package, imports_at_head) == {}


def test_the_table_names_what_is_there():
    verbs = {verb for panel in PANELS.values() for verb in panel}
    for addition in ADDITIONS:
        assert is_present(addition.package)
        assert {*addition.verbs} <= verbs
        for route in addition.routes:
            importlib.import_module(route)
        for path in addition.programs:
            program = resolve_name(path)
            assert isinstance(program, Program)
            assert program in PROGRAMS


def test_programs_start_in_the_order_of_the_table():
    assert [program.name for program in PROGRAMS] == [
        "mlflow", "mlflow-follower", "redis", "airflow-api", "scheduler", "dag-processor", "serving",
        "consumer", "console",
    ]  # fmt: skip


def test_a_folder_that_lost_its_modules_is_no_package(tmp_path, monkeypatch):
    package = tmp_path / "some_addition"
    (package / "inner").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_present("some_addition")
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    assert is_present("some_addition")
    assert not is_present("some_addition.inner")
    assert not is_present("no_such_package.inner")

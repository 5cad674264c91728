"""On-demand views that a worker calls by itself: plain functions of the installed project.

Code comes from the project, never from a registry, without the module around it, which imports
Feast; its SHA-256 says that it is what was trained with.
"""

import ast
import builtins
import hashlib
import symtable
import textwrap
from collections.abc import Callable
from typing import Any

from core.errors import DataError
from core.settings import PROJECT


class UnsupportedError(Exception):
    """What only Feast's own reader can do."""


def plain_source(text: str, name: str) -> str:
    """Return function `name` of the Python source `text` without decorators and annotations.

    Raises:
        UnsupportedError: there is no such plain function, or it uses names it does not define.

    """
    try:
        body = ast.parse(textwrap.dedent(text)).body
    except (SyntaxError, ValueError) as exc:
        raise UnsupportedError(f"{name}: its source is no Python: {exc}") from exc
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(functions) != 1:
        raise UnsupportedError(f"{name}: its source has no plain function of that name")
    (function,) = functions
    function.decorator_list = []
    for node in ast.walk(function):  # names of annotations are the module's, not the function's
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    source = ast.unparse(function)
    unknown = _globals(symtable.symtable(source, name, "exec")) - {name, *dir(builtins)}
    if unknown:
        raise UnsupportedError(f"{name}: it uses {', '.join(sorted(unknown))} of its module")
    return source


def module_source(module: str, name: str) -> str:
    """Return `plain_source` of function `name` in `module` of the installed project."""
    path = PROJECT.joinpath(*module.split(".")).with_suffix(".py")
    try:
        return plain_source(path.read_text(), name)
    except OSError as exc:
        raise UnsupportedError(f"{name}: no module {module} in the project") from exc


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def load_function(module: str, name: str, sha256: str) -> Callable[[dict[str, Any]], Any]:
    """Return function `name` of `module`, compiled without the module.

    Raises:
        DataError: it is gone, or another than the one whose SHA-256 is given.

    """
    try:
        source = module_source(module, name)
    except UnsupportedError as exc:
        raise DataError(f"on-demand view {exc}") from exc
    if digest(source) != sha256:
        raise DataError(
            f"{module}.{name} is not the function that this version was trained with: restore it "
            "(a changed one needs a new name), or train again"
        )
    names: dict[str, Any] = {}
    exec(compile(source, f"{module}.{name}", "exec"), names)  # noqa: S102  (the project's own)
    function: Callable[[dict[str, Any]], Any] = names[name]
    return function


def _globals(table: symtable.SymbolTable) -> set[str]:
    names = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return names.union(*(_globals(child) for child in table.get_children()))

"""On-demand functions as source, which a worker runs without their module: that imports Feast."""

import ast
import hashlib
import textwrap
from collections.abc import Callable
from typing import Any

from core.errors import DataError
from core.settings import PROJECT


class UnsupportedError(Exception):
    """What only Feast's own reader can do."""


def function_source(text: str, name: str) -> str:
    """Return the source of what function `name` of the Python source `text` computes.

    It has no comments, decorators, annotations and docstrings.

    Raises:
        UnsupportedError: There is no plain function of that name.

    """
    try:
        statements = ast.parse(textwrap.dedent(text)).body
    except (SyntaxError, ValueError) as exc:
        raise UnsupportedError(f"{name}: its source is no Python: {exc}") from exc
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            statement.decorator_list = []
            for node in ast.walk(statement):
                _strip(node)
            return ast.unparse(statement)
    raise UnsupportedError(f"{name}: its source has no plain function of that name")


def _strip(node: ast.AST) -> None:
    if isinstance(node, ast.arg):
        node.annotation = None
    elif isinstance(node, ast.FunctionDef):
        node.returns = None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def module_source(module: str, name: str) -> str:
    """Return `function_source` of a function in `module` of the installed project."""
    path = PROJECT.joinpath(*module.split(".")).with_suffix(".py")
    return function_source(path.read_text(), name)


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def load_function(
    module: str,
    name: str,
    sha256: str,
) -> Callable[[dict[str, Any]], Any]:
    """Return function `name` of `module`, compiled without the module.

    Raises:
        DataError: It is gone, or its digest is not `sha256`.

    """
    try:
        source = module_source(module, name)
    except (OSError, UnsupportedError) as exc:
        raise DataError(f"on-demand view {exc}") from exc
    if digest(source) != sha256:
        raise DataError(
            f"{module}.{name} is not the function that this version was trained with: restore it "
            "(a changed one needs a new name), or train again"
        )
    names: dict[str, Callable[..., Any]] = {}
    exec(compile(source, f"{module}.{name}", "exec"), names)  # noqa: S102  (the project's own)
    return names[name]

"""On-demand functions as source: a worker runs them without their module, which imports Feast."""

import __future__

import ast
import hashlib
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from core.errors import DataError
from core.project import PROJECT
from core.user_code import parse


def function_source(text: str, name: str) -> str:
    """Return function `name` of a Python source, without comments, decorators and docstring.

    Return an empty text where the source has no plain function of that name.
    """
    try:
        statements = parse(textwrap.dedent(text)).body
    except SyntaxError:  # a lambda is stored with the lines around it
        return ""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            statement.decorator_list = []
            if ast.get_docstring(statement) is not None:
                statement.body.pop(0)
            return ast.unparse(statement)
    return ""


def module_source(module: str, name: str) -> str:
    """Return `function_source` of a function in `module` of the installed project."""
    path = PROJECT.joinpath(*module.split(".")).with_suffix(".py")
    return function_source(path.read_text(), name) if path.exists() else ""


def input_columns(on_demand_views: Iterable[Any]) -> set[str]:
    """Return the columns by which Feast gives on-demand views the features of stored views.

    It gives each feature by two names, and where a frame has both, `view__feature` counts.
    """
    names: set[str] = set()
    for view in on_demand_views:
        for projection in view.source_feature_view_projections.values():
            for feature in projection.features:
                names |= {feature.name, f"{projection.name}__{feature.name}"}
    return names


def digest(source: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(source.encode()).hexdigest()


def load_function(
    module: str,
    name: str,
    sha256: str,
) -> Callable[[dict[str, Any]], Any]:
    """Return function `name` of `module`, compiled without the module.

    Raises:
        DataError: The function is gone, or its digest is not `sha256`.

    """
    source = module_source(module, name)
    if digest(source) != sha256:
        raise DataError(
            f"{module}.{name} is not the function that this version was trained with: restore it "
            "(a changed function needs a new name), or train again"
        )
    # Annotations may name objects that only the module has.
    flags = __future__.annotations.compiler_flag
    code = compile(source, f"{module}.{name}", "exec", flags)
    names: dict[str, Callable[..., Any]] = {}
    exec(code, names)  # noqa: S102  (the project's own)
    return names[name]

"""Which on-demand views a worker can call by itself, from the source that Feast keeps of them."""

from __future__ import annotations

import ast
import builtins
import symtable
import textwrap
from typing import Any


class NotDirectError(Exception):
    """What only Feast's own reader can do."""


def check_plain(view: Any) -> None:
    """Raise NotDirectError unless an on-demand view is one Python function over lists."""
    reasons = {
        f"mode is {view.mode}": view.mode != "python",
        "it is a singleton": view.singleton,
        "it is written to the online store": view.write_to_online_store,
        "it aggregates": bool(view.aggregations),
        "it has an alias": view.projection.name_to_use() != view.name,
    }
    for reason, true in reasons.items():
        if true:
            raise NotDirectError(f"on-demand view {view.name}: {reason}")


def plain_source(view: str, text: str) -> tuple[str, str]:
    """Return the function of an on-demand view without decorators and annotations, and its name.

    Raises:
        NotDirectError: it is no plain function, or uses names that it does not define.

    """
    try:
        (function,) = ast.parse(textwrap.dedent(text)).body
    except (SyntaxError, ValueError) as exc:
        raise NotDirectError(f"on-demand view {view}: its source is not one function") from exc
    if not isinstance(function, ast.FunctionDef):
        raise NotDirectError(f"on-demand view {view}: its source is not one function")
    function.decorator_list = []
    for node in ast.walk(function):  # names of annotations are Feast's module's, not the function's
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    source = ast.unparse(function)
    if strange := _free(symtable.symtable(source, view, "exec")) - {function.name, *dir(builtins)}:
        raise NotDirectError(f"on-demand view {view}: it uses {', '.join(sorted(strange))}")
    return source, function.name


def _free(table: symtable.SymbolTable) -> set[str]:
    found = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return found.union(*(_free(child) for child in table.get_children()))

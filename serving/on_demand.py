"""On-demand views as a plan has them: functions over columns, called once for all rows."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from feature_repo.serving_plan import PlannedFunction

Columns = dict[str, list[Any]]
Odd = dict[int, str]
"""Rows, by position, that Feast's own reader is to answer, and why."""


class FunctionReader:
    """An on-demand view: its function, called with lists."""

    def __init__(self, plan: PlannedFunction) -> None:
        self._plan, names = plan, dict[str, Any]()
        # As trusted as the registry, of which Feast runs what is pickled there.
        exec(compile(plan.source, plan.name, "exec"), names)  # noqa: S102
        self._function = names[plan.function]

    def columns(self, known: Columns, count: int, odd: Odd) -> Columns:
        try:
            return self._call(known, slice(count), count)
        except Exception:  # noqa: BLE001  (of which row it is, is found out)
            return self._each(known, count, odd)

    def _each(self, known: Columns, count: int, odd: Odd) -> Columns:
        found: dict[str, list[Any]] = {name: [] for name in self._plan.outputs}
        for n in range(count):
            try:
                row = self._call(known, slice(n, n + 1), 1)
            except Exception:  # noqa: BLE001  (Feast's reader says what)
                odd[n] = "function"
                row = {name: [None] for name in found}
            for name, values in row.items():
                found[name] += values
        return found

    def _call(self, known: Columns, part: slice, count: int) -> Columns:
        # Copies: what a function does to its arguments is its own affair.
        given = {name: known[column][part] for name, column in self._plan.inputs.items()}
        found = self._function(given)
        made = {name: PYTHON[kind](found[name]) for name, kind in self._plan.outputs.items()}
        if any(len(column) != count for column in made.values()):
            raise ValueError("not a value for each row")
        return made


def _ints(values: list[Any]) -> list[Any]:
    if not {*map(type, values)} <= {int, type(None)}:
        raise TypeError("no integers")
    struct.pack(f"<{len(values)}q", *[value or 0 for value in values])
    return values


def _doubles(values: list[Any]) -> list[Any]:
    if not {*map(type, values)} <= {float, int, type(None)}:
        raise TypeError("no numbers")
    found = [None if value is None else float(value) for value in values]
    return [None if value is None or math.isnan(value) else value for value in found]


def _strings(values: list[Any]) -> list[Any]:
    if not {*map(type, values)} <= {str, type(None)}:
        raise TypeError("no strings")
    return values


PYTHON: dict[str, Callable[[Any], list[Any]]] = {
    "int64": _ints, "double": _doubles, "string": _strings,
}  # fmt: skip
"""What a function gives, as Feast would; TypeError or ValueError where that is not plain."""

"""On-demand views: functions over columns, called once for all rows of a micro-batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from feature_repo.on_demand import load_function

if TYPE_CHECKING:
    from mlflow_server.lookup import OnDemandFunction
    from stack.spec import FeatureType

Columns = dict[str, list[Any]]
TYPES: dict[FeatureType, set[type]] = {
    "int64": {int, type(None)},
    "double": {float, int, type(None)},
    "string": {str, type(None)},
}


class FunctionReader:
    """One on-demand view."""

    def __init__(self, function: OnDemandFunction) -> None:
        """Raise DataError if the project does not have the function any more."""
        self._inputs = function.inputs
        self._outputs = function.outputs
        self._call = load_function(function.module, function.function, function.sha256)

    def columns(self, known: Columns, count: int) -> Columns:
        """Return the view's columns for `count` rows; whatever its function raises passes."""
        # Copies: what a function does to its arguments is its own affair.
        result = self._call({name: known[column][:] for name, column in self._inputs.items()})
        columns = {name: _typed(kind, result[name]) for name, kind in self._outputs.items()}
        if any(len(column) != count for column in columns.values()):
            raise ValueError("not a value for each row")
        return columns


def _typed(kind: FeatureType, values: list[Any]) -> list[Any]:
    """Return values as Feast would store and give them back; NaN is null."""
    if not {*map(type, values)} <= TYPES[kind]:
        raise TypeError(f"not all values are {kind}")
    if kind != "double":
        return values
    return [None if value is None or math.isnan(value) else float(value) for value in values]

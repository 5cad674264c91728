"""An ONNX graph that was made elsewhere, asked as it is: no node of it is changed.

Serving's workers import this module: it needs no more than NumPy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.spec import MISSING
from mlflow_server.manifest import ModelInterface, SignatureType

SIGNATURE_DTYPES: dict[SignatureType, Any] = {
    "boolean": np.bool_,
    "integer": np.int32,
    "long": np.int64,
    "float": np.float32,
    "double": np.float64,
    "string": np.object_,
}
"""NumPy's type of a column of a signature."""
ARRAY_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
"""NumPy's type of an input of a graph."""


class GraphInput(NamedTuple):
    """An input of a graph.

    Attributes:
        name: Its name in the graph.
        dtype: NumPy's type.
        columns: Names of its columns.
        is_vector: Whether it is [N], of one column.

    """

    name: str
    dtype: Any
    columns: list[str]
    is_vector: bool


class ForeignGraph:
    """A session of ONNX Runtime over the features of a spec.

    Raises:
        ValueError: The graph takes other inputs than the interface says, or none of a feature's type.

    """

    def __init__(
        self,
        session: Any,
        interface: ModelInterface,
        class_count: int,
    ) -> None:
        self._session = session
        self._interface = interface
        self._class_count = class_count
        self._kinds = {column.name: column.kind for column in interface.columns}
        self._inputs = graph_inputs(session, interface)

    def run(
        self, _outputs: Sequence[str], columns: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float64]]:
        """Return scores of the rows in `columns`, [N] or [N, K]."""
        answer = self.answer(columns)
        return [scores_of(answer, self._interface.positions, self._class_count)]

    def answer(self, columns: Mapping[str, NDArray[Any]]) -> Any:
        """Return what the output of the graph says."""
        feed = {}
        for graph_input in self._inputs:
            arrays = [
                typed(columns[name], self._kinds[name]).astype(graph_input.dtype)
                for name in graph_input.columns
            ]
            feed[graph_input.name] = (
                arrays[0] if graph_input.is_vector else np.column_stack(arrays)
            )
        return self._session.run([self._interface.output], feed)[0]


def graph_inputs(session: Any, interface: ModelInterface) -> list[GraphInput]:
    """Return the inputs of a graph, and the columns that each has.

    Raises:
        ValueError: The graph takes other inputs than the interface says, or none of a feature's type.

    """
    places = session.get_inputs()
    parts = _columns_of_inputs(places, interface)
    inputs = []
    for place in places:
        if place.type not in ARRAY_TYPES:
            raise ValueError(
                f"the graph's input {place.name} is {place.type}, as no feature is"
            )
        graph_input = GraphInput(
            name=place.name,
            dtype=ARRAY_TYPES[place.type],
            columns=parts[place.name],
            is_vector=len(place.shape) == 1,
        )
        inputs.append(graph_input)
    return inputs


def _columns_of_inputs(
    inputs: Sequence[Any], interface: ModelInterface
) -> dict[str, list[str]]:
    """Return the names of the columns that each input of a graph has."""
    names = [column.name for column in interface.columns]
    graph_names = [place.name for place in inputs]
    if {*graph_names} == {*names}:
        return {name: [name] for name in names}
    if len(inputs) == 1:
        return {graph_names[0]: names}
    if {*graph_names} == {tensor.name for tensor in interface.tensors}:
        parts = {}
        first = 0
        for tensor in interface.tensors:
            parts[tensor.name] = names[first : first + tensor.width]
            first += tensor.width
        return parts
    if len(inputs) == len(names):  # the signature has other names, in the same order
        return {
            graph_name: [name]
            for graph_name, name in zip(graph_names, names, strict=True)
        }
    raise ValueError(
        f"the graph has the inputs {', '.join(graph_names)}, its signature {', '.join(names)}"
    )


def typed(values: NDArray[Any], kind: SignatureType) -> NDArray[Any]:
    """Return values of a feature as a signature has them; a null text is a null.

    Raises:
        ValueError: An integer is no boolean, or has more than the 32 bits of the signature.

    """
    if kind == "string":
        texts = values.astype(object)
        texts[values == MISSING] = None
        return texts
    typed_values = np.asarray(values).astype(SIGNATURE_DTYPES[kind])
    if kind in ("boolean", "integer"):
        changed_values = values[typed_values != values]
        if len(changed_values):
            raise ValueError(
                f"{changed_values[0]} is no {kind}, as which the model takes it"
            )
    return typed_values


def scores_of(
    answer: Any, positions: Sequence[int], class_count: int
) -> NDArray[np.float64]:
    """Return the scores of an answer: [N], for more than two classes [N, K].

    Args:
        answer: Numbers of each row: an array, a frame, a list, or a list of maps from class to number.
        positions: See `ModelInterface`.
        class_count: Number of classes; 0 if the model predicts numbers.

    """
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        answer = [[*row.values()] for row in answer]
    matrix = np.asarray(answer, np.float64)
    matrix = matrix.reshape(len(matrix), -1)
    if positions:
        matrix = matrix[:, [*positions]]
    return matrix if class_count > 2 else matrix[:, -1]  # noqa: PLR2004

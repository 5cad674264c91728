"""A model that was trained elsewhere, as MLflow's own pyfunc opens it: what is served must equal it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray

from core.errors import TrainingError
from core.spec import MISSING, ModelSpec
from mlflow_server.foreign_graph import ForeignGraph, scores_of
from mlflow_server.manifest import ModelColumn, ModelInterface
from mlflow_server.model.foreign import (
    INPUT_TYPES,
    ForeignModel,
    objective_of,
    pandas_type,
)

PROBABILITIES = {
    "sklearn": (),
    "xgboost": ("binary:logistic", "reg:logistic", "multi:softprob"),
    "lightgbm": ("binary", "cross_entropy", "multiclass"),
}
"""Objectives of Boosters whose scores are probabilities, by flavour."""
BOOSTER_MODULES = ("xgboost.core", "lightgbm.basic")
BINARY_NAMES = (("0", "1"), ("False", "True"), ("0.0", "1.0"))
"""Names of two classes that are those of a classification here, in order."""


def class_count(spec: ModelSpec) -> int:
    """Return the number of classes; 0 if the model predicts numbers."""
    return 0 if spec.task == "regression" else len(spec.classes) or 2


class Original:
    """The model, over a frame with the features of a spec.

    Attributes:
        foreign: Its description.
        raw: The object of its library; of a graph ONNX Runtime's session.
        kind: Library and class, for people.
        interface: How its served form is asked.

    Raises:
        TrainingError: It takes other inputs than the features of the spec, or has other classes.

    """

    def __init__(
        self, foreign: ForeignModel, model: Any, spec: ModelSpec, rows: pd.DataFrame
    ) -> None:
        self.foreign = foreign
        self._model = model
        self._spec = spec
        self.raw: Any = None
        self.kind = foreign.library
        if foreign.flavor != "python_function":
            self.raw = model.get_raw_model()
        if foreign.flavor in ("sklearn", "xgboost", "lightgbm"):
            self.kind = f"{foreign.library}: {type(self.raw).__name__}"
        require_scores(spec, foreign, self.raw)
        columns = input_columns(spec, foreign)
        output = ""
        if foreign.flavor == "onnx":
            require_any_batch(self.raw)
            output = score_output(self.raw.get_outputs())
        self.interface = ModelInterface(
            columns=columns,
            tensors=foreign.tensors,
            output=output,
            model_class=foreign.model_class if foreign.flavor == "xgboost" else None,
        )
        self._graph = None
        if foreign.flavor == "onnx":
            self._graph = ForeignGraph(self.raw, self.interface, class_count(spec))
        names = self._class_names(rows[:2])
        positions = class_positions(spec, names)
        self.interface = self.interface.model_copy(update={"positions": positions})

    @property
    def has_probabilities(self) -> bool:
        """Whether its library says itself that its scores are probabilities."""
        return hasattr(self.raw, "predict_proba")

    def scores(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Return the scores of rows of features: [N], for many classes [N, K]."""
        answer = self.answer(rows)
        return scores_of(answer, self.interface.positions, class_count(self._spec))

    def answer(self, rows: pd.DataFrame) -> Any:
        """Return what the model says, with a column for each of its own classes."""
        inputs = self._inputs(rows)
        if self._graph is not None:
            return self._answer_of_graph(self._graph, inputs, rows)
        is_classifier = self._spec.task != "regression"
        if is_classifier and self.has_probabilities:
            return self.raw.predict_proba(inputs)
        return self._model.predict(inputs)

    def _answer_of_graph(
        self, graph: ForeignGraph, inputs: Any, rows: pd.DataFrame
    ) -> Any:
        """Ask MLflow's pyfunc; where it cannot give a graph what it takes, ONNX Runtime."""
        if self.foreign.tensors:
            return self._model.predict(inputs)[self.interface.output]
        columns = {str(name): rows[name].to_numpy() for name in rows}
        return graph.answer(columns)

    def _inputs(self, rows: pd.DataFrame) -> Any:
        """Return rows as the model's signature has them: a frame, a matrix, or matrices by name."""
        columns = {}
        for column in self.interface.columns:
            values: Any = rows[column.name]
            if column.kind == "string":
                values = values.astype(object).where(values != MISSING, None)
            else:
                own_values = values
                values = values.astype(pandas_type(column.kind))
                changed = own_values[values != own_values]
                if column.kind in ("boolean", "integer") and len(changed):
                    raise TrainingError(
                        f"{column.name}: {changed.iloc[0]} is no {column.kind}, as which the model's "
                        f"signature has it ({len(changed)} rows)"
                    )
            columns[column.name] = values
        frame = pd.DataFrame(columns)
        tensors = self.foreign.tensors
        if not tensors:
            return frame
        matrix = frame.to_numpy()
        if len(tensors) == 1:
            return {tensors[0].name: matrix} if tensors[0].name else matrix
        first = 0
        matrices = {}
        for tensor in tensors:
            matrices[tensor.name] = matrix[:, first : first + tensor.width]
            first += tensor.width
        return matrices

    def _class_names(self, rows: pd.DataFrame) -> list[str]:
        """Return the names of the classes as the model has them, in its order; empty: it has none."""
        if self._spec.task == "regression":
            return []
        if hasattr(self.raw, "classes_"):
            return [str(each) for each in np.asarray(self.raw.classes_).tolist()]
        answer = self.answer(rows)
        if isinstance(answer, pd.DataFrame):
            is_numbered = [*answer.columns] == [*range(answer.shape[1])]
            return [] if is_numbered else [str(each) for each in answer.columns]
        if isinstance(answer, list) and answer and isinstance(answer[0], dict):
            return [str(each) for each in answer[0]]
        if self._graph is not None:
            return _labels_of(self.foreign)
        return []


def score_output(outputs: Sequence[Any]) -> str:
    """Return the output of a graph that has the scores: the last one of numbers or of maps."""
    names = [
        each.name
        for each in outputs
        if each.type.startswith(("tensor(float", "tensor(double", "seq(map"))
    ]
    return str([*(each.name for each in outputs), *names][-1])


def require_any_batch(session: Any) -> None:
    """Refuse a graph that takes one row at a time.

    Raises:
        TrainingError: It does.

    """
    for place in session.get_inputs():
        if place.shape and place.shape[0] == 1:
            raise TrainingError(
                f"its graph takes one row at a time (input {place.name}): export it for any number of "
                "rows (dynamic_axes, or dynamic_shapes)"
            )


def require_scores(spec: ModelSpec, foreign: ForeignModel, raw: Any) -> None:
    """Refuse a model of a library that says itself that its scores are no probabilities.

    Raises:
        TrainingError: The task needs probabilities, and the model has none.

    """
    if spec.task == "regression" or foreign.flavor not in PROBABILITIES:
        return
    kind = type(raw).__name__
    if type(raw).__module__ in BOOSTER_MODULES:
        objective = objective_of(raw)
        if objective in PROBABILITIES[foreign.flavor]:
            return
        expected = " or ".join(PROBABILITIES[foreign.flavor])
        raise TrainingError(
            f"its objective is {objective}, which gives no probabilities: expected {expected}"
        )
    if not hasattr(raw, "predict_proba"):
        raise TrainingError(
            f"{kind} has no predict_proba, so that it gives no probabilities: calibrate it "
            "(CalibratedClassifierCV of scikit-learn)"
        )


def _labels_of(foreign: ForeignModel) -> list[str]:
    """Return the texts that a graph of a classifier has as the names of its classes."""
    model = onnx.load(foreign.folder / foreign.file, load_external_data=False)
    for node in reversed(model.graph.node):
        for attribute in node.attribute:
            if attribute.name == "classlabels_strings" and attribute.strings:
                return [each.decode() for each in attribute.strings]
    return []


def input_columns(spec: ModelSpec, foreign: ForeignModel) -> tuple[ModelColumn, ...]:
    """Return the features in the order in which the model takes them, with its types.

    Raises:
        TrainingError: The model takes other inputs than the features of the spec.

    """
    names = [*spec.features]
    if foreign.tensors:
        widths = [tensor.width for tensor in foreign.tensors]
        width = len(names) if widths == [-1] else sum(widths)
        if width != len(names):
            raise TrainingError(
                f"{spec.name}.toml: features: expected {width}, as the model takes, in "
                f"its order; found {len(names)}: {', '.join(names)}"
            )
        kind = foreign.tensor_type
        return tuple(ModelColumn(name=name, kind=kind) for name in names)
    problems = []
    known_columns = {
        column.name: column for column in (*foreign.columns, *foreign.optional)
    }
    for name, column in known_columns.items():
        own_type = spec.inputs.get(name)
        expected_type = INPUT_TYPES[column.kind]
        types = (own_type, expected_type)
        if own_type is None:
            if column in foreign.columns:
                problems.append(f"{name} ({expected_type}) is missing")
        elif own_type != expected_type and types != ("int64", "double"):
            problems.append(f"{name}: expected {expected_type}, found {own_type}")
    unknown_names = [name for name in names if name not in known_columns]
    if unknown_names:
        problems.append(f"the model does not take {', '.join(unknown_names)}")
    if problems:
        raise TrainingError(f"{spec.name}.toml: features: {'; '.join(problems)}")
    return tuple(known_columns[name] for name in known_columns if name in spec.features)


def class_positions(spec: ModelSpec, names: Sequence[str]) -> tuple[int, ...]:
    """Return the column of the model's answer that each class of the spec has.

    Args:
        spec: The model here.
        names: Names of the classes as the model has them; empty: it says none.

    Returns:
        Positions; empty: the answer has the order of the spec.

    Raises:
        TrainingError: The model has other classes.

    """
    if not names:
        return ()
    if spec.task == "classification":
        if tuple(names) in BINARY_NAMES or len(names) == 1:
            return ()
        raise TrainingError(
            f"its classes are {' and '.join(names)}: a classification has 0 and 1: train it on these, "
            'or set task = "multiclass" with its classes, if there are more than two'
        )
    numbered = [str(position) for position in range(len(spec.classes))]
    if {*names} == {*spec.classes}:
        positions = tuple(names.index(name) for name in spec.classes)
        return () if [*positions] == [*range(len(names))] else positions
    if [*names] == numbered:
        return ()
    raise TrainingError(
        f"its classes are {', '.join(names)}: expected those of {spec.name}.toml, "
        f"{', '.join(spec.classes)}"
    )

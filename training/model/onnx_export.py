"""The export of fitted models to served ones, and the proof that both score the same."""

import sys
import warnings
from importlib import import_module
from typing import Any, Literal

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn, update_registered_converter
from skl2onnx.common.data_types import (
    DoubleTensorType,
    Int64TensorType,
    StringTensorType,
)
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from core.errors import TrainingError
from core.spec import MISSING, ModelSpec
from mlflow_server.manifest import SCORE
from mlflow_server.model.pyfunc import ModelFile
from training.model.estimators import error_line

OPSETS = {"": 18, "ai.onnx.ml": 3}
ONNX_TYPES: dict[str, Any] = {
    "int64": (Int64TensorType, TensorProto.INT64),
    "double": (DoubleTensorType, TensorProto.DOUBLE),
    "string": (StringTensorType, TensorProto.STRING),
}
BOOSTING = {
    "xgboost": ("XGBoost", "convert_xgboost", "XGBClassifier", "XGBRegressor"),
    "lightgbm": ("LightGbm", "convert_lightgbm", "LGBMClassifier", "LGBMRegressor"),
}
"""Library → module and function of onnxmltools' converter; the library's two classes."""
EXPORT_REMEDY = (
    "exact conversions, and [serving] format = 'native': docs/how-to/own-model.md"
)
NULL_TEXTS = ("None", "nan", "<NA>")
"""Texts that ONNX Runtime reads instead of a null in a frame of MLflow's pyfunc."""


def exported(
    model: Any,
    spec: ModelSpec,
    rows: pd.DataFrame | None = None,
    served_format: Literal["onnx", "native"] = "onnx",
) -> ModelFile:
    """Return the served form of a fitted model in a format.

    Args:
        model: The fitted model.
        spec: Its spec.
        rows: Rows that it was fitted on. A null text of MLflow's pyfunc, which ONNX Runtime reads as
            one of NULL_TEXTS, is then scored as serving scores it, unless a row has that text.
        served_format: ONNX, or the format of its library.

    """
    if served_format == "onnx":
        return ModelFile(
            export(model, spec, rows).SerializeToString(deterministic=True)
        )
    _check_classes(model, spec)
    class_count = 2 if spec.task == "classification" else len(spec.classes)
    return ModelFile.native(model, spec.trusted_types, class_count)


def export(
    model: Any, spec: ModelSpec, rows: pd.DataFrame | None = None
) -> onnx.ModelProto:
    """Convert a fitted model: one rank-1 input per feature, one output `score` [N] float32.

    The same pipeline gives the same bytes in every process. A model's own `to_onnx()` returns one
    input [N, 1] per feature, and as last output [N, 1] numbers or [N, 2] probabilities. For K
    classes both outputs are [N, K]. rows: see `exported`.

    Raises:
        TrainingError: Its classes are not 0 and 1 (0 to K - 1), or nothing can convert it.

    """
    _check_classes(model, spec)
    try:
        is_own = hasattr(model, "to_onnx")
        graph = model.to_onnx() if is_own else _converted(model, spec)
        return _with_columns(graph, spec, rows)
    except Exception as exc:
        step = f"ONNX export of {type(_last(model)).__name__}"
        raise TrainingError(f"{step}: {error_line(exc)}; {EXPORT_REMEDY}") from exc


def _check_classes(model: Any, spec: ModelSpec) -> None:
    expected = [*range(len(spec.classes) or 2)]
    fitted_classes = expected
    if hasattr(model, "predict_proba"):
        fitted_classes = np.asarray(getattr(model, "classes_", expected)).tolist()
    if fitted_classes != expected or SCORE in spec.features:
        raise TrainingError(
            f"export: expected the classes {' and '.join(map(str, expected))} and no feature "
            f"named {SCORE!r}, found the classes {fitted_classes} and the features "
            f"{', '.join(spec.features)}"
        )


def _converted(model: Any, spec: ModelSpec) -> onnx.ModelProto:
    for library in BOOSTING:
        if library in sys.modules:  # else no step of the model is from it
            _register(library)
    steps = [step for _, step in getattr(model, "steps", ())]
    # In a float32 matrix a product with the reciprocal rounds otherwise than a division.
    scalers = [step for step in steps if isinstance(step, StandardScaler)]
    options: dict[Any, Any] = {id(scaler): {"div": "div"} for scaler in scalers}
    if hasattr(model, "predict_proba"):
        options[type(_last(model))] = {"zipmap": False}
    inputs = [
        (name, ONNX_TYPES[kind][0]([None, 1])) for name, kind in spec.inputs.items()
    ]
    with warnings.catch_warnings():
        # skl2onnx hands numpy's integers to protobuf, which will refuse them from 7 on.
        warnings.simplefilter("ignore", DeprecationWarning)
        return convert_sklearn(
            model,
            name="gyre",
            initial_types=inputs,
            target_opset=OPSETS,
            options=options,
        )


def _last(model: Any) -> Any:
    return model[-1] if isinstance(model, Pipeline) else model


def _register(library: str) -> None:
    """Register onnxmltools' converter of the library's classifier and regressor with skl2onnx."""
    module, function, classifier, regressor = BOOSTING[library]
    path = f"onnxmltools.convert.{library}.operator_converters.{module}"
    convert_trees = getattr(import_module(path), function)

    def convert(scope: Any, operator: Any, container: Any) -> None:
        convert_trees(scope, operator, _ExactThresholds(container))

    update_registered_converter(
        getattr(sys.modules[library], classifier),
        f"Gyre{classifier}",
        calculate_linear_classifier_output_shapes,
        convert,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]},
    )
    update_registered_converter(
        getattr(sys.modules[library], regressor),
        f"Gyre{regressor}",
        calculate_linear_regressor_output_shapes,
        convert,
    )


class _ExactThresholds:
    """A container of skl2onnx's nodes that rounds thresholds of trees down to float32.

    A float32 value is at or below a threshold if it is at or below the threshold rounded down. If it
    is rounded to the nearest, as in ONNX, a threshold between two neighbours becomes one of them.
    """

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, kind: str, inputs: Any, outputs: Any, **attributes: Any) -> None:
        if "nodes_values" in attributes:
            exact = np.asarray(attributes["nodes_values"], np.float64)
            nearest = exact.astype(np.float32)
            below = np.nextafter(nearest, np.float32(-np.inf))
            is_most = np.asarray(attributes["nodes_modes"]) == "BRANCH_LEQ"
            thresholds = np.where(is_most & (nearest > exact), below, nearest)
            attributes["nodes_values"] = thresholds.tolist()
        self._container.add_node(kind, inputs, outputs, **attributes)


def _with_columns(
    model: onnx.ModelProto, spec: ModelSpec, rows: pd.DataFrame | None
) -> onnx.ModelProto:
    """Put rank-1 inputs in front of the graph and the one output behind it.

    skl2onnx makes inputs [N, 1] and outputs [N, 1] or [N, K]; MLflow's ONNX flavour feeds columns.
    rows: see `exported`.
    """
    input_nodes, constants = _input_nodes(spec, rows)
    columns = _columns(model.graph, spec)
    for node in model.graph.node:
        node.input[:] = [columns.get(name, name) for name in node.input]
    output_nodes, output_constants = _output_nodes(model.graph, spec)
    shape = ["N", len(spec.classes)] if spec.classes else ["N"]
    tensors = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants | output_constants).items()
    ]
    graph = helper.make_graph(
        [*input_nodes, *model.graph.node, *output_nodes],
        "gyre",
        [
            helper.make_tensor_value_info(name, ONNX_TYPES[kind][1], ["N"])
            for name, kind in spec.inputs.items()
        ],
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, shape)],
        [*model.graph.initializer, *tensors],
    )
    # The operators asked for: skl2onnx names the oldest that its own nodes need.
    opsets = [
        helper.make_opsetid(domain, version) for domain, version in OPSETS.items()
    ]
    served = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    onnx.checker.check_model(served)
    return served


def _columns(graph: onnx.GraphProto, spec: ModelSpec) -> dict[str, str]:
    """Return the matrix [N, 1] of each input, by the input's name in the graph.

    skl2onnx writes `_` for a blank and other signs in a name, and keeps the order.
    """
    names = [each.name for each in graph.input]
    if {*names} <= {*spec.inputs}:
        return {name: f"{name}/column" for name in spec.inputs}
    pairs = zip(names, spec.inputs, strict=True)
    return {name: f"{feature}/column" for name, feature in pairs}


def _input_nodes(
    spec: ModelSpec, rows: pd.DataFrame | None
) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Return the nodes that make a matrix [N, 1] of each input, and their constants by name."""
    constants: dict[str, Any] = {"/shape": np.array([-1, 1])}
    nodes = []
    for name, kind in spec.inputs.items():
        values = name
        if kind == "string" and rows is not None:
            values = f"{name}/filled"
            constants["/missing"] = np.array(MISSING, dtype=object)
            nodes += _filled(name, values, {*NULL_TEXTS}.difference(rows[name]))
        nodes.append(
            helper.make_node("Reshape", [values, "/shape"], [f"{name}/column"])
        )
    return nodes, constants


def _output_nodes(
    graph: onnx.GraphProto, spec: ModelSpec
) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Return the nodes that make `score` of the last output, and their constants by name."""
    constants: dict[str, Any] = {}
    nodes = []
    scores = graph.output[-1].name
    if graph.output[-1].type.tensor_type.elem_type == TensorProto.DOUBLE:
        cast = helper.make_node("Cast", [scores], ["/float"], to=TensorProto.FLOAT)
        nodes.append(cast)
        scores = "/float"
    # Probabilities beside the label: ten of 0.1 are 1.0000001.
    if len(graph.output) > 1:
        constants |= {"/low": np.float32(0), "/high": np.float32(1)}
        nodes.append(helper.make_node("Clip", [scores, "/low", "/high"], ["/clipped"]))
        scores = "/clipped"
    if spec.classes:
        nodes.append(helper.make_node("Identity", [scores], [SCORE]))
    else:  # of two probabilities the second column, of numbers the only one
        constants["/last"] = np.array(-1)
        nodes.append(helper.make_node("Gather", [scores, "/last"], [SCORE], axis=1))
    return nodes, constants


def _filled(name: str, filled: str, null_texts: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that give an input with `/missing` in place of some texts."""
    codes = f"{name}/code"
    is_null = f"{name}/null"
    # These texts have the code 1, all others 0; the encoder needs one text at least.
    encoder = helper.make_node(
        "LabelEncoder",
        [name],
        [codes],
        domain="ai.onnx.ml",
        keys_strings=[MISSING, *sorted(null_texts)],
        values_int64s=[1] * (1 + len(null_texts)),
        default_int64=0,
    )
    return [
        encoder,
        helper.make_node("Cast", [codes], [is_null], to=TensorProto.BOOL),
        helper.make_node("Where", [is_null, "/missing", name], [filled]),
    ]

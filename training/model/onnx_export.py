"""The export of fitted models to served ones, and the proof that both score the same."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray
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
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from core.spec import MISSING, InputType, ModelSpec
from core.user_code import in_one_line
from mlflow_server.manifest import SCORE
from mlflow_server.model.pyfunc import ModelFile
from training.evaluation.metrics import predict
from training.model.estimators import error_line
from training.model.scoring import score

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
PERMUTED_ROWS = 50_000
MISSING_SHARE = 0.01
UNSEEN_VALUES: dict[InputType, Any] = {"double": np.nan, "string": "never seen"}
LARGEST_DIFFERENCE = 1e-5
"""Difference of two probabilities. That of two numbers is a share of the fitted model's number, or
of the mean size of its scores of the real rows if this is larger. A float32 is exact to 6e-8."""
LARGEST_SHARE_BEYOND = 1e-3
"""Share of rows that may differ by more: a value within float32's coarseness of a tree's threshold
may take the other branch."""
LARGEST_SHARE_OF_FLIPS = 1e-4


def pipeline_scores(model: Any, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the fitted model's scores, in the form of the served model's.

    They are float64: [N], the probability of class 1 or the number, and for K classes [N, K].
    """
    with threadpool_limits(1):  # OpenMP's threads wait for each other on a busy machine
        if not hasattr(model, "predict_proba"):
            return np.asarray(model.predict(rows), np.float64).reshape(len(rows))
        probabilities = np.asarray(model.predict_proba(rows), np.float64)
    is_binary = probabilities.shape[1] == 2  # noqa: PLR2004  (classes 0 and 1)
    return probabilities[:, 1] if is_binary else probabilities


def exported(
    model: Any, spec: ModelSpec, rows: pd.DataFrame | None = None
) -> ModelFile:
    """Return the served form of a fitted model, in the format of `[serving]`.

    Args:
        model: The fitted model.
        spec: Its spec.
        rows: Rows that it was fitted on. A null text of MLflow's pyfunc, which ONNX Runtime reads as
            one of NULL_TEXTS, is then scored as serving scores it, unless a row has that text.

    """
    if spec.serving.format == "onnx":
        return ModelFile(
            export(model, spec, rows).SerializeToString(deterministic=True)
        )
    _check_classes(model, spec)
    class_count = 2 if spec.task == "classification" else len(spec.classes)
    return ModelFile.native(model, spec.serving.trusted_types, class_count)


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


@dataclass(frozen=True)
class Proof:
    """How far the served and the fitted model agree.

    Attributes:
        largest_difference: Largest difference of all rows.
        reasons: Why the proof failed, a line for each kind of rows; empty if it passed.

    """

    largest_difference: float
    reasons: tuple[str, ...]


def prove(
    pipeline: Any,
    model: ModelFile,
    real: pd.DataFrame,
    spec: ModelSpec,
    threshold: float | None,
    unseen: Mapping[InputType, Any] = UNSEEN_VALUES,
) -> Proof:
    """Score real and permuted rows with both models and compare; a difference is no error.

    The proof passes if 99.9 % of the rows of either kind agree within 1e-5, and at most one in 10,000
    has another prediction (a flip).

    Args:
        pipeline: The fitted model.
        model: Its served form.
        real: Rows of the features.
        spec: Spec of the model.
        threshold: Threshold of two classes.
        unseen: Value of each type of input that some permuted rows have.

    """
    probes = {"real": real, "permuted": permuted_rows(real, spec, unseen)}
    reasons = []
    largest = 0.0
    unit = 1.0
    try:
        for kind, rows in probes.items():
            expected = pipeline_scores(pipeline, rows)
            scores = score(model, spec.inputs, rows)
            is_number = threshold is None and expected.ndim == 1
            if is_number and kind == "real":
                unit = float(np.abs(expected).mean()) or 1.0
            gaps = np.abs(scores - expected) / np.maximum(np.abs(expected), unit)
            gaps = np.nan_to_num(gaps, nan=1.0).reshape(len(rows), -1).max(axis=1)
            share_beyond = float(np.mean(gaps > LARGEST_DIFFERENCE))
            words = (
                f"largest difference {gaps.max():.3g}, {share_beyond:.2%} of rows "
                f"beyond {LARGEST_DIFFERENCE:g}"
            )
            passed = share_beyond <= LARGEST_SHARE_BEYOND
            if not is_number:
                changed = predict(scores, threshold) != predict(expected, threshold)
                passed = passed and changed.mean() <= LARGEST_SHARE_OF_FLIPS
                words = f"{words}, {changed.sum()} flips"
            if not passed:
                reasons.append(f"{kind}: {words}")
            largest = max(largest, float(gaps.max()))
    except Exception as exc:  # noqa: BLE001  (any error of an engine is a reason not to trust it)
        reasons.append(in_one_line(exc))
        largest = 1.0
    return Proof(largest, tuple(reasons))


def permuted_rows(
    frame: pd.DataFrame,
    spec: ModelSpec,
    unseen: Mapping[InputType, Any] = UNSEEN_VALUES,
) -> pd.DataFrame:
    """Draw each feature by itself; one value in a hundred is missing, or a text never seen."""
    random = np.random.default_rng(spec.seed)
    permuted = {}
    for name, kind in spec.inputs.items():
        values = pd.Series(random.choice(frame[name].to_numpy(), PERMUTED_ROWS))
        if kind in unseen:
            is_missing = random.random(PERMUTED_ROWS) < MISSING_SHARE
            values = values.mask(is_missing, unseen[kind])
        permuted[name] = values
    return pd.DataFrame(permuted)

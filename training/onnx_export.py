"""The export of fitted models to what is served, and the check that both score the same."""

import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
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
from core.spec import InputType, ModelSpec
from core.user_code import in_one_line
from mlflow_server.pyfunc import ModelFile
from mlflow_server.served_model import SCORE
from training.estimators import reason
from training.metrics import predict

OPSETS = {"": 18, "ai.onnx.ml": 3}
TYPES: dict[str, Any] = {
    "int64": (Int64TensorType, TensorProto.INT64, np.int64),
    "double": (DoubleTensorType, TensorProto.DOUBLE, np.float64),
    "string": (StringTensorType, TensorProto.STRING, np.object_),
}
BOOSTING = {
    "xgboost": ("XGBoost", "convert_xgboost", "XGBClassifier", "XGBRegressor"),
    "lightgbm": ("LightGbm", "convert_lightgbm", "LGBMClassifier", "LGBMRegressor"),
}
"""Library → module and function of onnxmltools' converter; the library's two classes."""
REMEDY = "what converts exactly, and what [serving] format = 'native' does: docs/how-to/own-model.md"
TIMED_ROWS, PERMUTED_ROWS, MOVED_ROWS, NULL_ROWS = 1000, 50_000, 20_000, 500
MISSING: dict[InputType, Any] = {"double": np.nan, "string": "never seen"}
LARGEST_DIFFERENCE = 1e-5
"""Of two probabilities. Of two numbers: as a share of scikit-learn's, or of the mean size of its
scores of the real rows where that is more. float32 itself is 6e-8 of a number coarse.
"""
LARGEST_SHARE_OF_FLIPS = 1e-4
"""Of 50,000 made-up rows, some scores lie within float32's coarseness of the threshold."""


def pipeline_scores(model: Any, rows: pd.DataFrame) -> NDArray[np.float64]:
    """What the exported model is to say: probability of class 1, of each of many, or the number."""
    with threadpool_limits(1):  # OpenMP's threads wait for each other on a busy machine
        if hasattr(model, "predict_proba"):
            found = np.asarray(model.predict_proba(rows), np.float64)
            return found[:, 1] if found.shape[1] == 2 else found  # noqa: PLR2004  (0 and 1)
        return np.asarray(model.predict(rows), np.float64).reshape(len(rows))


def exported(model: Any, spec: ModelSpec) -> ModelFile:
    """Return what is served of a fitted model, in the format that `[serving]` asks for."""
    classes = len(spec.classes)
    if spec.serving.format == "onnx":
        onnx = export(model, spec.inputs, classes)
        return ModelFile(onnx.SerializeToString(deterministic=True))
    _check_classes(model, spec.inputs, classes)
    classes = classes or (0 if spec.threshold is None else 2)
    return ModelFile.native(model, spec.serving.trusted_types, classes)


def export(
    model: Any, features: Mapping[str, InputType], classes: int = 0
) -> onnx.ModelProto:
    """Convert what was fitted: one rank-1 input per feature, one output `score` [N] float32.

    The same pipeline gives the same bytes in every process. A model's own `to_onnx()` returns one
    input [N, 1] per feature, and as last output [N, 1] numbers or [N, 2] probabilities. classes: K
    where there are many: then both outputs are [N, K].

    Raises:
        TrainingError: its classes are not 0 and 1 (0 to K - 1), or nothing can convert it.

    """
    _check_classes(model, features, classes)
    try:
        own = getattr(model, "to_onnx", None)
        made = own() if own else _converted(model, features)
        return _with_columns(made, features, classes)
    except Exception as exc:
        what = f"ONNX export of {type(_last(model)).__name__}"
        raise TrainingError(f"{what}: {reason(exc)}; {REMEDY}") from exc


def _check_classes(model: Any, features: Mapping[str, InputType], classes: int) -> None:
    expected = found = [*range(classes or 2)]
    if hasattr(model, "predict_proba"):
        found = np.asarray(getattr(model, "classes_", expected)).tolist()
    if found != expected or SCORE in features:
        raise TrainingError(
            f"export: expected the classes {' and '.join(map(str, expected))} and no feature "
            f"named {SCORE!r}, found the classes {found} and the features {', '.join(features)}"
        )


def _converted(model: Any, features: Mapping[str, InputType]) -> onnx.ModelProto:
    for library in BOOSTING:
        if library in sys.modules:  # else no step of the model is of it
            _register(library)
    exact = _with_float32_thresholds(model)
    steps = [step for _, step in getattr(exact, "steps", ())]
    # Of a float32 matrix.
    scalers = [step for step in steps if isinstance(step, StandardScaler)]
    options: dict[Any, Any] = {id(scaler): {"div": "div"} for scaler in scalers}
    if hasattr(model, "predict_proba"):
        options[type(_last(exact))] = {"zipmap": False}
    inputs = [(name, TYPES[kind][0]([None, 1])) for name, kind in features.items()]
    with warnings.catch_warnings():
        # skl2onnx hands numpy's integers to protobuf, which will refuse them from 7 on.
        warnings.simplefilter("ignore", DeprecationWarning)
        return convert_sklearn(
            exact,
            name="gyre",
            initial_types=inputs,
            target_opset=OPSETS,
            options=options,
        )


def _last(model: Any) -> Any:
    return model[-1] if isinstance(model, Pipeline) else model


def _register(library: str) -> None:
    """Tell skl2onnx of onnxmltools' converter for the library's classifier and regressor."""
    module, function, *names = BOOSTING[library]
    converters = import_module(
        f"onnxmltools.convert.{library}.operator_converters.{module}"
    )
    convert = getattr(converters, function)
    if library == "lightgbm":
        convert = partial(_with_rounded_thresholds, convert)
    zipmap = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    shapes = (
        (calculate_linear_classifier_output_shapes, zipmap),
        (calculate_linear_regressor_output_shapes, None),
    )
    for name, (shape, options) in zip(names, shapes, strict=True):
        kind = getattr(sys.modules[library], name)
        update_registered_converter(
            kind, f"Gyre{name}", shape, convert, options=options
        )


def _with_rounded_thresholds(
    convert: Any, scope: Any, operator: Any, container: Any
) -> None:
    """Convert a LightGBM model whose thresholds are rounded down to float32."""
    model = operator.raw_operator
    text = re.sub(r"(?m)^tree_sizes=.*\n", "", model.booster_.model_to_string())

    def rounded(line: re.Match[str]) -> str:
        return " ".join(
            map(str, _rounded_down(np.array(line[0].split(), float)).tolist())
        )

    text = re.sub(r"(?m)(?<=^threshold=).+$", rounded, text)
    more = {
        "boosting_type": model.boosting_type,
        "classes_": getattr(model, "classes_", None),
    }
    operator.raw_operator = SimpleNamespace(
        booster_=type(model.booster_)(model_str=text), **more
    )
    convert(scope, operator, container)


def _with_float32_thresholds(model: Any) -> Any:
    """Copy, with histogram boosting's thresholds rounded down to float32.

    ONNX trees compare in float32; as every value is one, scikit-learn's own scores stay the same.
    """
    copy = deepcopy(model)
    # Private: there is no public way to the trees. It ends when skl2onnx rounds these thresholds
    # as it does a forest's (`adjust_threshold_for_sklearn`).
    for tree in chain.from_iterable(getattr(_last(copy), "_predictors", ())):
        tree.nodes["num_threshold"] = _rounded_down(tree.nodes["num_threshold"])
    return copy


def _rounded_down(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    nearest = exact.astype(np.float32)
    return np.where(
        nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest
    )


def _with_columns(
    model: onnx.ModelProto, features: Mapping[str, InputType], classes: int
) -> onnx.ModelProto:
    """Put rank-1 inputs in front of the graph and the one output behind it.

    skl2onnx makes inputs [N, 1] and outputs [N, 1] or [N, K]; MLflow's ONNX flavour feeds columns.
    classes: as `export` has it.
    """
    column = {name: f"{name}/column" for name in features}
    for node in model.graph.node:
        node.input[:] = [column.get(name, name) for name in node.input]
    nodes = [helper.make_node("Reshape", [n, "/shape"], [column[n]]) for n in features]
    nodes += model.graph.node
    # Of probabilities the second column, of numbers the only one: the last.
    output = model.graph.output[-1].name
    constants: dict[str, Any] = {"/shape": [-1, 1]}
    # Label and probabilities; ten shares of 0.1 are 1.0000001.
    if len(model.graph.output) > 1:
        nodes.append(helper.make_node("Clip", [output, "/low", "/high"], ["/clipped"]))
        output, constants = (
            "/clipped",
            constants | {"/low": np.float32(0), "/high": np.float32(1)},
        )
    if classes:
        shape = ["N", classes]
        nodes.append(helper.make_node("Identity", [output], [SCORE]))
    else:
        shape, constants["/last"] = ["N"], -1
        nodes.append(helper.make_node("Gather", [output, "/last"], [SCORE], axis=1))
    graph = helper.make_graph(
        nodes,
        "gyre",
        [
            helper.make_tensor_value_info(n, TYPES[kind][1], ["N"])
            for n, kind in features.items()
        ],
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, shape)],
        [
            *model.graph.initializer,
            *(
                numpy_helper.from_array(np.asarray(value), n)
                for n, value in constants.items()
            ),
        ],
    )
    # The operators asked for: skl2onnx names the oldest that its own nodes need.
    opsets = [
        helper.make_opsetid(domain, version) for domain, version in OPSETS.items()
    ]
    served = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    onnx.checker.check_model(served)
    return served


@dataclass(frozen=True)
class Proof:
    """How far what is served and the fitted model agree; passed if there is no reason against it.

    rows: by kind, those compared. flips: None of numbers.
    """

    rows: dict[str, int]
    largest_difference: float
    flips: int | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.reasons


def score(
    model: ModelFile, inputs: Mapping[str, InputType], rows: pd.DataFrame
) -> NDArray[np.float64]:
    """What a served model with one column per input says: float64 [N], of many classes [N, K]."""
    scores: NDArray[np.float64] = open_session(model).run(
        [SCORE], columns(inputs, rows)
    )[0]
    return scores.astype(np.float64)


def latency_p99_ms(
    model: ModelFile, inputs: Mapping[str, InputType], rows: pd.DataFrame
) -> float:
    """Time of one row in one thread, as serving has it: 99th percentile of up to 1,000 rows."""
    session, feed, took = open_session(model), columns(inputs, rows), []
    for row in range(min(len(rows), TIMED_ROWS)):
        one = {name: column[row : row + 1] for name, column in feed.items()}
        began = time.perf_counter()
        session.run([SCORE], one)
        took.append(time.perf_counter() - began)
    return float(np.percentile(took, 99)) * 1000


def open_session(model: ModelFile) -> onnxruntime.InferenceSession | ModelFile:
    if model.loader != "mlflow.onnx":
        return model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.content, options, providers=["CPUExecutionProvider"]
    )


def columns(inputs: Mapping[str, InputType], rows: pd.DataFrame) -> dict[str, Any]:
    return {
        name: rows[name].to_numpy(dtype=TYPES[kind][2]) for name, kind in inputs.items()
    }


def prove(
    pipeline: Any,
    model: ModelFile,
    frame: pd.DataFrame,
    seed: int,
    *,
    features: Mapping[str, InputType],
    threshold: float | None = 0.5,
) -> Proof:
    """Score real and made-up rows with both and compare; never raises for a difference.

    frame: real rows. A flip is a row whose `round(score, 6) >= threshold` differs, or whose class.
    At most one row in 10,000 of a kind may flip; where there are fewer real rows, none may.
    """
    rows: dict[str, int] = {}
    largest, flips, unit, reasons, numbers = 0.0, 0, 1.0, [], threshold is None
    try:
        for kind, probe in _probes(frame[list(features)], features, seed):
            expected, served = (
                pipeline_scores(pipeline, probe),
                score(model, features, probe),
            )
            numbers = threshold is None and expected.ndim == 1
            if numbers and kind == "real":
                unit = float(np.abs(expected).mean()) or 1.0
            gaps = np.abs(served - expected) / np.maximum(np.abs(expected), unit)
            gap = float(np.nan_to_num(gaps, nan=1.0).max())  # NaN is as wrong as can be
            flipped, also = 0, ""
            if not numbers:
                flipped = int(
                    np.sum(predict(served, threshold) != predict(expected, threshold))
                )
                also = f", {flipped} flips"
            if gap > LARGEST_DIFFERENCE or flipped > LARGEST_SHARE_OF_FLIPS * len(
                probe
            ):
                reasons.append(f"{kind}: largest difference {gap:.3g}{also}")
            rows[kind], largest, flips = len(probe), max(largest, gap), flips + flipped
    except Exception as exc:  # noqa: BLE001  (whatever an engine says is a reason not to trust it)
        reasons.append(in_one_line(exc))
        largest = 1.0
    return Proof(rows, largest, None if numbers else flips, tuple(reasons))


def _probes(
    frame: pd.DataFrame, features: Mapping[str, InputType], seed: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (kind, rows): real, permuted, null, and one step beside the real ones."""
    yield "real", frame
    random = np.random.default_rng(seed)
    permuted = {
        name: random.choice(frame[name].to_numpy(), PERMUTED_ROWS) for name in features
    }
    yield "permuted", pd.DataFrame(permuted)
    missing = {
        name: MISSING[kind] for name, kind in features.items() if kind in MISSING
    }
    if missing:
        some = frame.sample(NULL_ROWS, replace=True, random_state=seed)
        one_each = [some.assign(**{name: value}) for name, value in missing.items()]
        yield "null", pd.concat([*one_each, some.assign(**missing)], ignore_index=True)
    some = frame.sample(min(MOVED_ROWS, len(frame)), random_state=seed)
    for kind, step in (("neighbour below", -1), ("neighbour above", 1)):
        yield kind, some.apply(_neighbour, step=step)


def _neighbour(column: "pd.Series[Any]", step: int) -> Any:
    """Each number's next float32 value, of whole numbers the next one; NaN and text stay."""
    if column.dtype == np.int64:
        return column + step
    if column.dtype == np.float64:
        return np.nextafter(
            column.astype(np.float32), np.float32(step * np.inf)
        ).astype(float)
    return column

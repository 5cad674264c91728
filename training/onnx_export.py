"""scikit-learn pipelines that ONNX can follow exactly, and their export.

Numbers are cast to float32 first, so that both engines compare the same values. Trees get no
scaler, and histogram boosting takes NaN as it is. Nothing here is read back from a pickle.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from skl2onnx.sklapi import CastTransformer
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_server.served_model import SCORE
from stack.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stack.spec import FeatureType

OPSETS = {"": 18, "ai.onnx.ml": 3}
TYPES: dict[str, Any] = {
    "int64": (Int64TensorType, TensorProto.INT64),
    "double": (DoubleTensorType, TensorProto.DOUBLE),
    "string": (StringTensorType, TensorProto.STRING),
}
ESTIMATORS: dict[str, Any] = {
    "logistic_regression": LogisticRegression,
    "random_forest": partial(RandomForestClassifier, n_jobs=-1),
    "hist_gradient_boosting": HistGradientBoostingClassifier,
}


def build_pipeline(
    estimator_type: str,
    parameters: Mapping[str, Any],
    features: Mapping[str, FeatureType],
    seed: int,
) -> Pipeline:
    """Return the unfitted pipeline over a frame with the columns `features`, in that order."""
    if estimator_type not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise TrainingError(f"estimator {estimator_type!r}: exported to ONNX are {known}")
    parts: dict[str, Any] = {
        "int64": CastTransformer(dtype=np.float32),
        "double": CastTransformer(dtype=np.float32),
        "string": OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32),
    }
    columns = ColumnTransformer(
        [(kind, part, names) for kind, part in parts.items() if (names := names_of(features, kind))]
    )
    steps: list[tuple[str, Any]] = [("columns", columns)]
    if estimator_type != "hist_gradient_boosting":
        steps.append(("imputer", SimpleImputer(strategy="median", keep_empty_features=True)))
    if estimator_type == "logistic_regression":
        steps.append(("scaler", StandardScaler()))
    estimator = ESTIMATORS[estimator_type](**{"random_state": seed, **parameters})
    return Pipeline([*steps, ("estimator", estimator)])


def export(pipeline: Pipeline, features: Mapping[str, FeatureType]) -> onnx.ModelProto:
    """Convert the fitted pipeline: one rank-1 input per feature, one output `score` [N] float32.

    The same pipeline gives the same bytes in every process.

    Raises:
        TrainingError: not a classifier of 0 and 1, or a feature has the output's name.

    """
    classes = [int(label) for label in pipeline.classes_]
    if classes != [0, 1] or SCORE in features:
        raise TrainingError(
            f"ONNX export: expected the classes 0 and 1 and no feature named {SCORE!r}, "
            f"found the classes {classes} and the features {', '.join(features)}"
        )
    exact = _with_float32_thresholds(pipeline)
    options: dict[Any, Any] = {type(exact[-1]): {"zipmap": False}}
    if "scaler" in exact.named_steps:
        options[StandardScaler] = {"div": "div"}
    inputs = [(name, TYPES[kind][0]([None, 1])) for name, kind in features.items()]
    with warnings.catch_warnings():
        # skl2onnx hands numpy's integers to protobuf, which will refuse them from 7 on.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = convert_sklearn(
            exact, name="gyre", initial_types=inputs, target_opset=OPSETS, options=options
        )
    return _by_column(model, features)


def names_of(features: Mapping[str, FeatureType], kind: str) -> list[str]:
    return [name for name, found in features.items() if found == kind]


def _with_float32_thresholds(pipeline: Pipeline) -> Pipeline:
    """Copy, with histogram boosting's thresholds rounded down to float32.

    ONNX trees compare in float32; as every value is one, scikit-learn's own scores stay the same.
    """
    copy = deepcopy(pipeline)
    if isinstance(copy[-1], HistGradientBoostingClassifier):
        made = copy[-1]._predictors  # noqa: SLF001  (no public way to the trees)
        for predictor in chain.from_iterable(made):
            exact = predictor.nodes["num_threshold"]
            down = exact.astype(np.float32)
            down = np.where(down > exact, np.nextafter(down, np.float32(-np.inf)), down)
            predictor.nodes["num_threshold"] = down
    return copy


def _by_column(model: onnx.ModelProto, features: Mapping[str, FeatureType]) -> onnx.ModelProto:
    """Rewire the graph to rank-1 inputs and the one output, dropping what leads nowhere."""
    graph = model.graph
    probabilities, column = graph.output[-1].name, {name: f"{name}/column" for name in features}
    nodes = [helper.make_node("Reshape", [n, "/column"], [column[n]], f"/{n}") for n in features]
    for node in graph.node:
        node.input[:] = [column.get(name, name) for name in node.input]
    last = helper.make_node("Gather", [probabilities, "/one"], [SCORE], "/score", axis=1)
    kept, needed = [], {SCORE}
    for node in reversed([*nodes, *graph.node, last]):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    constants = [helper.make_tensor("/column", TensorProto.INT64, [2], [-1, 1])]
    constants.append(helper.make_tensor("/one", TensorProto.INT64, [], [1]))
    constants += [tensor for tensor in graph.initializer if tensor.name in needed]
    made = helper.make_graph(
        kept[::-1],
        "gyre",
        [helper.make_tensor_value_info(n, TYPES[kind][1], ["N"]) for n, kind in features.items()],
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, ["N"])],
        constants,
    )
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    done = helper.make_model(made, opset_imports=opsets, ir_version=model.ir_version)
    onnx.checker.check_model(done)
    return done

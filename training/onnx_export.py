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
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from mlflow_server.served_model import SCORE
from stack.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from stack.spec import FeatureType, Task

OPSETS = {"": 18, "ai.onnx.ml": 3}
TYPES: dict[str, Any] = {
    "int64": (Int64TensorType, TensorProto.INT64),
    "double": (DoubleTensorType, TensorProto.DOUBLE),
    "string": (StringTensorType, TensorProto.STRING),
}
ESTIMATORS: dict[Task, dict[str, Any]] = {
    "classification": {
        "logistic_regression": LogisticRegression,
        "random_forest": partial(RandomForestClassifier, n_jobs=-1),
        "hist_gradient_boosting": HistGradientBoostingClassifier,
    },
    "regression": {
        "ridge": Ridge,
        "random_forest": partial(RandomForestRegressor, n_jobs=-1),
        "hist_gradient_boosting": HistGradientBoostingRegressor,
    },
}
LINEAR = {"logistic_regression", "ridge"}
BOOSTING = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)


def build_pipeline(
    estimator_type: str,
    parameters: Mapping[str, Any],
    features: Mapping[str, FeatureType],
    seed: int,
    task: Task = "classification",
) -> Pipeline:
    """Return the unfitted pipeline over a frame with the columns `features`, in that order."""
    if estimator_type not in ESTIMATORS[task]:
        known = ", ".join(ESTIMATORS[task])
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
    if estimator_type in LINEAR:
        steps.append(("scaler", StandardScaler()))
    estimator = ESTIMATORS[task][estimator_type](**{"random_state": seed, **parameters})
    return Pipeline([*steps, ("estimator", estimator)])


def pipeline_scores(pipeline: Pipeline, rows: pd.DataFrame) -> NDArray[np.float64]:
    """What `score` of the exported model is to be: probability of class 1, or the number."""
    with threadpool_limits(1):  # OpenMP's threads wait for each other on a busy machine
        if is_classifier(pipeline):
            return np.asarray(pipeline.predict_proba(rows)[:, 1], np.float64)
        return np.asarray(pipeline.predict(rows), np.float64)


def export(pipeline: Pipeline, features: Mapping[str, FeatureType]) -> onnx.ModelProto:
    """Convert the fitted pipeline: one rank-1 input per feature, one output `score` [N] float32.

    The same pipeline gives the same bytes in every process.

    Raises:
        TrainingError: a classifier of other classes than 0 and 1, or a feature has the output's
            name.

    """
    classes = [int(label) for label in pipeline.classes_] if is_classifier(pipeline) else [0, 1]
    if classes != [0, 1] or SCORE in features:
        raise TrainingError(
            f"ONNX export: expected the classes 0 and 1 and no feature named {SCORE!r}, "
            f"found the classes {classes} and the features {', '.join(features)}"
        )
    exact = _with_float32_thresholds(pipeline)
    options: dict[Any, Any] = {type(exact[-1]): {"zipmap": False}} if is_classifier(exact) else {}
    if "scaler" in exact.named_steps:
        options[StandardScaler] = {"div": "div"}
    inputs = [(name, TYPES[kind][0]([None, 1])) for name, kind in features.items()]
    with warnings.catch_warnings():
        # skl2onnx hands numpy's integers to protobuf, which will refuse them from 7 on.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = convert_sklearn(
            exact, name="gyre", initial_types=inputs, target_opset=OPSETS, options=options
        )
    return _by_column(model, features, probability=is_classifier(exact))


def names_of(features: Mapping[str, FeatureType], kind: str) -> list[str]:
    return [name for name, found in features.items() if found == kind]


def _with_float32_thresholds(pipeline: Pipeline) -> Pipeline:
    """Copy, with histogram boosting's thresholds rounded down to float32.

    ONNX trees compare in float32; as every value is one, scikit-learn's own scores stay the same.
    """
    copy = deepcopy(pipeline)
    if isinstance(copy[-1], BOOSTING):
        made = copy[-1]._predictors  # noqa: SLF001  (no public way to the trees)
        for predictor in chain.from_iterable(made):
            exact = predictor.nodes["num_threshold"]
            down = exact.astype(np.float32)
            down = np.where(down > exact, np.nextafter(down, np.float32(-np.inf)), down)
            predictor.nodes["num_threshold"] = down
    return copy


def _by_column(
    model: onnx.ModelProto, features: Mapping[str, FeatureType], *, probability: bool
) -> onnx.ModelProto:
    """Rewire the graph to rank-1 inputs and the one output, dropping what leads nowhere."""
    graph = model.graph
    found, column = graph.output[-1].name, {name: f"{name}/column" for name in features}
    nodes = [helper.make_node("Reshape", [n, "/column"], [column[n]], f"/{n}") for n in features]
    for node in graph.node:
        node.input[:] = [column.get(name, name) for name in node.input]
    # Of probabilities [N, 2] the second column, of numbers [N, 1] the only one: the last.
    raw = "/raw" if probability else SCORE
    last = [helper.make_node("Gather", [found, "/last"], [raw], "/score", axis=1)]
    constants = [helper.make_tensor("/column", TensorProto.INT64, [2], [-1, 1])]
    constants.append(helper.make_tensor("/last", TensorProto.INT64, [], [-1]))
    if probability:  # ten shares of 0.1 are 1.0000001 in float32
        last.append(helper.make_node("Clip", [raw, "/low", "/high"], [SCORE], "/clip"))
        for name, bound in (("/low", 0.0), ("/high", 1.0)):
            constants.append(helper.make_tensor(name, TensorProto.FLOAT, [], [bound]))
    kept, needed = [], {SCORE}
    for node in reversed([*nodes, *graph.node, *last]):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    constants += [tensor for tensor in graph.initializer if tensor.name in needed]
    made = helper.make_graph(
        kept[::-1],
        "gyre",
        [helper.make_tensor_value_info(n, TYPES[kind][1], ["N"]) for n, kind in features.items()],
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, ["N"])],
        constants,
    )
    # All that was asked for: skl2onnx names the oldest that its own nodes need.
    opsets = [helper.make_opsetid(*each) for each in OPSETS.items()]
    done = helper.make_model(made, opset_imports=opsets, ir_version=model.ir_version)
    onnx.checker.check_model(done)
    return done

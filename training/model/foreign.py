"""`python -m training.model.foreign FOLDER`: convert a model that was trained elsewhere.

A process of its own, as opening a foreign model may run code or crash. It reads `request.json` and
`frame.parquet` of the folder, and leaves `result.json` and the served model.
"""

import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper
from pydantic import TypeAdapter
from skl2onnx.sklapi import CastTransformer
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from core.errors import GyreError, TrainingError
from core.spec import InputType, ModelSpec
from core.user_code import in_one_line
from mlflow_server.manifest import Loader
from mlflow_server.model.foreign import ForeignModel, describe, fetch, opened
from mlflow_server.model.pyfunc import ModelFile
from training.data.frame import feature_columns
from training.model.onnx_export import (
    UNSEEN_VALUES,
    Proof,
    exported,
    pipeline_scores,
    prove,
)

ONNX_KINDS = {
    "int64": TensorProto.INT64,
    "double": TensorProto.DOUBLE,
    "string": TensorProto.STRING,
}
UNSEEN_WORDS: dict[InputType, str] = {
    "double": "null",
    "string": "text that it was not trained on",
}
SLOWER = "is scored by its library in a process of its own, which is slower than ONNX"
RUNS_CODE = "each server runs the model's code, with GYRE_ADOPT_PICKLES=true, and needs its packages"


@dataclass(frozen=True)
class Request:
    """A model to convert.

    Attributes:
        source: Where it lies.
        address: MLflow's address.
        spec: Spec of the model here.

    """

    source: str
    address: str
    spec: ModelSpec


@dataclass(frozen=True)
class Result:
    """A converted model, or why there is none.

    Attributes:
        error: Why there is none; empty: there is one.
        loader: MLflow's module that loads it.
        kind: Library and class that it came as.
        remark: What its served form lacks; empty: nothing.
        proof: How far the served and the original model agree.

    """

    error: str = ""
    loader: Loader = "mlflow.onnx"
    kind: str = ""
    remark: str = ""
    proof: Proof | None = None


REQUESTS = TypeAdapter(Request)
RESULTS = TypeAdapter(Result)


def convert(request: Request, rows: pd.DataFrame, folder: Path) -> Result:
    """Convert a model, prove that both score the same, and write the served one into `folder`.

    Raises:
        GyreError: It cannot be fetched, opened or converted, or takes other inputs.

    """
    spec = request.spec
    download = folder / "download"
    download.mkdir()
    foreign = describe(fetch(request.address, request.source, download))
    names = input_order(spec, foreign)
    is_classifier = spec.task != "regression"
    model = opened(
        foreign,
        spec.serving.trusted_types,
        is_classifier=is_classifier,
    )
    kind = foreign.library
    if not isinstance(model, ModelFile):
        kind = f"{kind}: {type(model).__name__}"
    fitted = fitted_model(spec, model, names)
    remarks = []
    if isinstance(fitted, ServedAsItIs):
        served = fitted.file
        remarks.append(f"{kind} {SLOWER}")
    else:
        served = exported(fitted, spec, rows)
    if served.loader == "mlflow.pyfunc":
        remarks.append(RUNS_CODE)
        require_probabilities(spec, pipeline_scores(fitted, rows))
    unseen = accepted_values_of(fitted, spec, rows)
    refused_kinds = {*spec.inputs.values()} & UNSEEN_VALUES.keys() - unseen.keys()
    remarks += [f"{kind} takes no {UNSEEN_WORDS[each]}" for each in refused_kinds]
    proof = prove(fitted, served, rows, spec, spec.threshold, unseen)
    loader = served.write(folder)
    return Result(loader=loader, kind=kind, remark="; ".join(remarks), proof=proof)


def accepted_values_of(
    fitted: Any, spec: ModelSpec, rows: pd.DataFrame
) -> dict[InputType, Any]:
    """Return the values for what is missing or was never seen that a model can score, by type."""
    accepted_values: dict[InputType, Any] = {}
    for kind, value in UNSEEN_VALUES.items():
        names = [name for name, own_kind in spec.inputs.items() if own_kind == kind]
        probe = rows.head(1).assign(**dict.fromkeys(names, value))
        with suppress(Exception):  # whatever its library raises
            if np.isfinite(pipeline_scores(fitted, probe)).all():
                accepted_values[kind] = value
    return accepted_values


def input_order(spec: ModelSpec, foreign: ForeignModel) -> list[str]:
    """Return the features in the order in which the model takes them.

    Raises:
        TrainingError: The model takes other inputs than the features of the spec.

    """
    names = [*spec.features]
    if not foreign.inputs:
        if foreign.width != len(names):
            raise TrainingError(
                f"{spec.name}.toml: features: expected {foreign.width}, as the model takes, in "
                f"its order; found {len(names)}: {', '.join(names)}"
            )
        return names
    problems = []
    for name, kind in foreign.inputs.items():
        own_kind = spec.inputs.get(name)
        if own_kind is None:
            problems.append(f"{name} ({kind}) is missing")
        elif own_kind != kind and (own_kind, kind) != ("int64", "double"):
            problems.append(f"{name}: expected {kind}, found {own_kind}")
    unknown_names = [name for name in names if name not in foreign.inputs]
    if unknown_names:
        problems.append(f"the model does not take {', '.join(unknown_names)}")
    if problems:
        raise TrainingError(f"{spec.name}.toml: features: {'; '.join(problems)}")
    return [*foreign.inputs]


def fitted_model(spec: ModelSpec, model: Any, names: list[str]) -> Any:
    """Return a fitted model over a frame with the spec's features.

    Args:
        spec: The model.
        model: As its library opened it.
        names: Features in the order in which it takes them.

    """
    if isinstance(model, bytes):
        return OnnxModel(spec, model, names)
    if isinstance(model, ModelFile):
        return zipped_model(spec, model)
    if type(model).__module__.startswith("lightgbm.basic"):
        return booster(spec, model, names)
    first = model[0] if isinstance(model, Pipeline) else model
    if isinstance(first, ColumnTransformer):
        return model  # it finds its columns by their names
    # One by one, so that the matrix has their order.
    parts = [(name, CastTransformer(dtype=np.float32), [name]) for name in names]
    columns = ColumnTransformer(parts)
    example = {
        name: np.zeros(1, np.int64 if spec.inputs[name] == "int64" else np.float64)
        for name in spec.inputs
    }
    columns.fit(pd.DataFrame(example))
    return Pipeline([("columns", columns), ("model", model)])


class ServedAsItIs:
    """A model over a frame that keeps its format.

    Attributes:
        file: Its file, as it is served.

    """

    def __init__(self, file: ModelFile, model: Any) -> None:
        self.file = file
        self._model = model
        if file.classes:
            self.predict_proba = self._probabilities

    def predict(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        return np.asarray(self._model.predict(rows), np.float64)

    def _probabilities(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        return _with_both_classes(self.predict(rows).reshape(len(rows), -1))


def _with_both_classes(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities [N, K]; of [N, 1], that of class 1, both classes."""
    return np.column_stack([1 - scores, scores]) if scores.shape[1] == 1 else scores


def booster(spec: ModelSpec, model: Any, names: list[str]) -> ServedAsItIs:
    """Return LightGBM's Booster over a frame.

    Raises:
        TrainingError: The spec has its features in another order.

    """
    if names != [*spec.features]:
        raise TrainingError(
            f"{spec.name}.toml: features: expected the model's order: {', '.join(names)}"
        )
    content = model.model_to_string().encode()
    return ServedAsItIs(
        ModelFile(content, "mlflow.lightgbm", _class_count(spec)), model
    )


def zipped_model(spec: ModelSpec, file: ModelFile) -> ServedAsItIs:
    """Return a zipped model over a frame, opened here."""
    file = replace(file, classes=_class_count(spec))
    return ServedAsItIs(file, file.loaded)


def _class_count(spec: ModelSpec) -> int:
    return 0 if spec.task == "regression" else len(spec.classes) or 2


def require_probabilities(spec: ModelSpec, scores: NDArray[np.float64]) -> None:
    """Refuse scores of a classifier that are classes, or numbers beyond 0 and 1.

    Raises:
        TrainingError: They are no probabilities.

    """
    if spec.task == "regression":
        return
    count = scores.size // len(scores)
    problem = ""
    if count != (len(spec.classes) or 1):
        problem = f"{count} numbers for a row"
    elif not ((scores >= 0) & (scores <= 1)).all():
        problem = f"numbers from {scores.min():.3g} to {scores.max():.3g}"
    elif np.isin(scores, (0, 1)).all():
        problem = "classes"
    if problem:
        raise TrainingError(
            f"expected a model that predicts probabilities, found {problem}: log it with a predict "
            "that returns them (mlflow.sklearn: pyfunc_predict_fn='predict_proba')"
        )


class OnnxModel:
    """An ONNX graph over a frame, with an input [N, 1] for each feature.

    The graph has one input of numbers [N, F], or an input for each feature. Its last output has the
    probabilities [N, K], or the probability of class 1, or the number, as [N] or [N, 1].
    """

    def __init__(self, spec: ModelSpec, content: bytes, names: list[str]) -> None:
        self._spec = spec
        self._names = names
        self._model = onnx.load_model_from_string(content)
        self._session = onnxruntime.InferenceSession(
            self._graph().SerializeToString(), providers=["CPUExecutionProvider"]
        )
        if spec.task == "regression":
            self.predict = self._scores
        else:
            self.predict_proba = self._probabilities

    def to_onnx(self) -> onnx.ModelProto:
        return self._graph()

    def _scores(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        feed = {}
        for name, kind in self._spec.inputs.items():
            dtype = {"int64": np.int64, "double": np.float64, "string": object}[kind]
            feed[name] = rows[[name]].to_numpy(dtype)
        last = self._session.get_outputs()[-1].name
        scores = np.asarray(self._session.run([last], feed)[0], np.float64)
        return scores.reshape(len(rows), -1)

    def _probabilities(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        return _with_both_classes(self._scores(rows))

    def _graph(self) -> onnx.ModelProto:
        """Return the graph between casts of the features and a matrix [N, K] as its last output."""
        graph = compose.add_prefix(self._model, "model/")
        _without_map(graph.graph)
        # An initialiser may be listed as an input, too.
        constants = {tensor.name for tensor in graph.graph.initializer}
        inputs = [each for each in graph.graph.input if each.name not in constants]
        casts = []
        if len(inputs) == 1 and len(self._names) > 1:
            target = inputs[0]
            kind = target.type.tensor_type.elem_type
            for name in self._names:
                cast = helper.make_node("Cast", [name], [f"{name}/cast"], to=kind)
                casts.append(cast)
            parts = [f"{name}/cast" for name in self._names]
            casts.append(helper.make_node("Concat", parts, [target.name], axis=1))
        else:
            targets = {each.name.removeprefix("model/"): each for each in inputs}
            for position, name in enumerate(self._names):
                target = targets.get(name, inputs[position])
                kind = target.type.tensor_type.elem_type
                casts.append(helper.make_node("Cast", [name], [target.name], to=kind))
        own_inputs = [
            helper.make_tensor_value_info(name, ONNX_KINDS[kind], [None, 1])
            for name, kind in self._spec.inputs.items()
        ]
        last = graph.graph.output[-1]
        matrix = helper.make_node("Reshape", [last.name, "/matrix"], ["scores"])
        # A 0 is the first dimension as it is.
        shape = helper.make_tensor("/matrix", TensorProto.INT64, [2], [0, -1])
        scores = helper.make_tensor_value_info(
            "scores", last.type.tensor_type.elem_type, None
        )
        merged = helper.make_graph(
            [*casts, *graph.graph.node, matrix],
            "adopted",
            own_inputs,
            [*graph.graph.output[:-1], scores],
            [*graph.graph.initializer, shape],
        )
        return helper.make_model(
            merged, opset_imports=graph.opset_import, ir_version=graph.ir_version
        )


def _without_map(graph: onnx.GraphProto) -> None:
    """Take the probabilities of a ZipMap as last output, which is a list of maps otherwise."""
    for node in graph.node:
        if node.op_type == "ZipMap":
            graph.node.remove(node)
            del graph.output[-1]
            probabilities = helper.make_tensor_value_info(
                node.input[0], TensorProto.FLOAT, None
            )
            graph.output.append(probabilities)
            return


def main(folder: Path) -> None:
    """Convert the model that `request.json` of the folder names."""
    request = REQUESTS.validate_json((folder / "request.json").read_bytes())
    frame = pq.read_table(folder / "frame.parquet")
    try:
        result = convert(request, feature_columns(request.spec, frame), folder)
    except GyreError as exc:
        result = Result(error=str(exc))
    except Exception as exc:  # noqa: BLE001  (whatever a foreign model raises)
        result = Result(error=in_one_line(exc))
    (folder / "result.json").write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""ONNX graphs, as exporters leave them."""

import numpy as np
import onnx
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn, to_onnx
from skl2onnx.common.data_types import (
    DoubleTensorType,
    FloatTensorType,
    StringTensorType,
)
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.support.training.zoo.members import (
    MAKERS,
    NUMBERS,
    TRAIN,
    Member,
    amount,
    numbers,
    outcome,
)
from tests.support.training.zoo.scikit import by_name, text, text_names

OPSET = {"": 18, "ai.onnx.ml": 3}
FLAVOR = "mlflow.onnx"
CLASSES = ("0", "1", "2")


def tensor_signature(**widths):
    """Return the signature of tensors by name, or of one without a name."""
    specs = [
        TensorSpec(np.dtype("float32"), (-1, width), None if name == "_" else name)
        for name, width in widths.items()
    ]
    return ModelSignature(inputs=Schema(specs))


def graph(name, task="classification", **more):
    """Add what a function returns: graph, rows, scores, and the signature."""

    def add(make):
        def made():
            model, rows, scores, signature = make()
            return Member(
                name, task, FLAVOR, model, rows, np.asarray(scores, np.float64),
                signature=signature, **more,
            )  # fmt: skip

        MAKERS[name] = made
        return make

    return add


def run(model, feed, output=-1):
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[output]


def matrix(rows):
    return rows[NUMBERS].to_numpy(np.float32)


def logistic(rows, count=2, y=None):
    labels = outcome(rows, count)
    labels = labels if y is None else y(labels)
    return LogisticRegression().fit(matrix(rows)[:TRAIN], labels[:TRAIN])


def dense(rows, width=1, activation="Sigmoid", output_shape=None):
    """Return a layer, as PyTorch exports it."""
    random = np.random.default_rng(2)
    weights = random.normal(size=(2, width)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["input", "w"], ["z"])]
    if activation:
        nodes.append(helper.make_node(activation, ["z"], ["y"]))
    last = nodes[-1].output[0]
    tensors = [numpy_helper.from_array(weights, "w")]
    if output_shape is not None:
        tensors.append(numpy_helper.from_array(np.array(output_shape), "shape"))
        nodes.append(helper.make_node("Reshape", [last, "shape"], ["out"]))
        last = "out"
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        tensors,
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(made, opset_imports=opset, ir_version=9)


@graph("onnx_map")
def onnx_map():
    """skl2onnx's default: a list of maps, keys are classes."""
    rows = numbers()
    model = to_onnx(logistic(rows), matrix(rows)[:1], target_opset=OPSET)
    scores = [each[1] for each in run(model, {"X": matrix(rows)})]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_map_of_names", "multiclass", classes=("never", "late", "early"))
def onnx_map_of_names():
    """The spec has the classes in another order than the graph."""
    rows = numbers()
    model = to_onnx(logistic(rows, 3, text_names), matrix(rows)[:1], target_opset=OPSET)
    maps = run(model, {"X": matrix(rows)})
    scores = [[each[name] for name in ("never", "late", "early")] for each in maps]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_tensor_of_names", "multiclass", classes=("never", "late", "early"))
def onnx_tensor_of_names():
    rows = numbers()
    fitted = logistic(rows, 3, text_names)
    options = {id(fitted): {"zipmap": False}}
    model = to_onnx(fitted, matrix(rows)[:1], options=options, target_opset=OPSET)
    scores = run(model, {"X": matrix(rows)})[:, ::-1]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_columns_of_maps", "multiclass", classes=CLASSES, refusal="probabilities")
def onnx_columns_of_maps():
    """zipmap = columns: an output for each class."""
    rows = numbers()
    fitted = logistic(rows, 3)
    options = {id(fitted): {"zipmap": "columns"}}
    model = to_onnx(fitted, matrix(rows)[:1], options=options, target_opset=OPSET)
    return model, rows, fitted.predict_proba(matrix(rows)), tensor_signature(_=2)


@graph("onnx_probability")
def onnx_probability():
    rows = numbers()
    model = dense(rows)
    scores = run(model, {"input": matrix(rows)})[:, 0]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_vector")
def onnx_vector():
    rows = numbers()
    model = dense(rows, output_shape=[-1])
    return model, rows, run(model, {"input": matrix(rows)}), tensor_signature(_=2)


@graph("onnx_two", "classification")
def onnx_two():
    rows = numbers()
    model = dense(rows, 2, "Softmax")
    scores = run(model, {"input": matrix(rows)})[:, 1]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_three", "multiclass", classes=CLASSES)
def onnx_three():
    rows = numbers()
    model = dense(rows, 3, "Softmax")
    return model, rows, run(model, {"input": matrix(rows)}), tensor_signature(_=2)


@graph("onnx_logits", refusal="probabilities")
def onnx_logits():
    rows = numbers()
    model = dense(rows, 1, "")
    scores = run(model, {"input": matrix(rows)})[:, 0]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_logits_of_three", "multiclass", classes=CLASSES, refusal="probabilities")
def onnx_logits_of_three():
    rows = numbers()
    model = dense(rows, 3, "")
    return model, rows, run(model, {"input": matrix(rows)}), tensor_signature(_=2)


@graph("onnx_sigmoids", "multiclass", classes=CLASSES, refusal="probabilities")
def onnx_sigmoids():
    """Three probabilities that do not sum to 1."""
    rows = numbers()
    model = dense(rows, 3, "Sigmoid")
    return model, rows, run(model, {"input": matrix(rows)}), tensor_signature(_=2)


@graph("onnx_number", "regression")
def onnx_number():
    rows = numbers(scale=3)
    model = dense(rows, 1, "")
    scores = run(model, {"input": matrix(rows)})[:, 0]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_double", "regression")
def onnx_double():
    """Readings of 1e9, in float64."""
    rows = numbers(scale=40, middle=1e9)
    fitted = LinearRegression().fit(rows.to_numpy()[:TRAIN], amount(rows)[:TRAIN])
    types = [("X", DoubleTensorType([None, 2]))]
    model = convert_sklearn(fitted, initial_types=types, target_opset=OPSET)
    scores = run(model, {"X": rows.to_numpy()})[:, 0]
    spec = TensorSpec(np.dtype("float64"), (-1, 2))
    return model, rows, scores, ModelSignature(inputs=Schema([spec]))


@graph("onnx_by_name")
def onnx_by_name():
    """A column for each input, one of them text."""
    rows = text()
    fitted = by_name().fit(rows[:TRAIN], outcome(rows)[:TRAIN])
    types = [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    types.append(("city", StringTensorType([None, 1])))
    options = {id(fitted): {"zipmap": False}}
    model = convert_sklearn(
        fitted, initial_types=types, options=options, target_opset=OPSET
    )
    feed = {name: rows[[name]].to_numpy(np.float32) for name in NUMBERS}
    feed["city"] = rows[["city"]].to_numpy(object)
    from mlflow.models import infer_signature  # noqa: PLC0415

    return model, rows, run(model, feed)[:, 1], infer_signature(rows)


@graph("onnx_tensors")
def onnx_tensors():
    """Two matrices, by name."""
    random = np.random.default_rng(5)
    names = ["a", "b", "c"]
    rows = pd.DataFrame(random.normal(size=(3000, 3)), columns=names)
    weights = {
        "w1": np.array([[1.0]], np.float32),
        "w2": np.array([[0.5], [-2.0]], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["profile", "w1"], ["p"]),
        helper.make_node("MatMul", ["history", "w2"], ["h"]),
        helper.make_node("Add", ["p", "h"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "tensors",
        [
            helper.make_tensor_value_info("profile", TensorProto.FLOAT, ["N", 1]),
            helper.make_tensor_value_info("history", TensorProto.FLOAT, ["N", 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(made, opset_imports=opset, ir_version=9)
    values = rows.to_numpy(np.float32)
    feed = {"profile": values[:, :1], "history": values[:, 1:]}
    return model, rows, run(model, feed)[:, 0], tensor_signature(profile=1, history=2)


@graph("onnx_functions")
def onnx_functions():
    """A local function, as PyTorch's newer exporter writes."""
    rows = numbers()
    function = helper.make_function(
        "local",
        "Squash",
        ["x"],
        ["y"],
        [helper.make_node("Sigmoid", ["x"], ["y"])],
        [helper.make_opsetid("", 18)],
    )
    model = dense(rows, 1, "")
    node = helper.make_node("Squash", ["z"], ["y"], domain="local")
    model.graph.node.append(node)
    del model.graph.output[:]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model.graph.output.append(output)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    scores = run(model, {"input": matrix(rows)})[:, 0]
    return model, rows, scores, tensor_signature(_=2)


@graph("onnx_name_of_a_tensor", "regression")
def onnx_name_of_a_tensor():
    """A feature is called as a tensor inside of the graph."""
    rows = numbers().rename(columns={"amount": "z", "visits": "input"})
    model = dense(rows, 1, "Relu")
    values = rows.to_numpy(np.float32)
    return model, rows, run(model, {"input": values})[:, 0], tensor_signature(_=2)


@graph("onnx_forest")
def onnx_forest():
    rows = numbers()
    model = make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=1))
    model.fit(matrix(rows)[:TRAIN], outcome(rows)[:TRAIN])
    made = to_onnx(model, matrix(rows)[:1], target_opset=OPSET)
    scores = [each[1] for each in run(made, {"X": matrix(rows)})]
    return made, rows, scores, tensor_signature(_=2)


@graph("onnx_fixed_batch", refusal="one row")
def onnx_fixed_batch():
    """Exported with the example's batch of one."""
    rows = numbers()
    model = dense(rows)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    scores = 1 / (
        1
        + np.exp(-matrix(rows) @ onnx.numpy_helper.to_array(model.graph.initializer[0]))
    )
    return model, rows, scores[:, 0], tensor_signature(_=2)


def external():
    """Weights in a file beside the graph."""
    rows = numbers()
    model = dense(rows)
    scores = run(model, {"input": matrix(rows)})[:, 0]
    for tensor in model.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    return Member(
        "onnx_external", "classification", FLAVOR, model, rows, scores,
        signature=tensor_signature(_=2), options={"save_as_external_data": True},
    )  # fmt: skip


MAKERS["onnx_external"] = external

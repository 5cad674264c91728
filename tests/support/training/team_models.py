"""`python -m tests.support.training.team_models ADDRESS FOLDER RESULT`: models of a team.

It knows nothing of Gyre. RESULT gets, as JSON, their addresses and their scores of `rows`.
"""

import json
import os
import sys
from pathlib import Path

import lightgbm
import mlflow.lightgbm
import mlflow.onnx
import mlflow.sklearn
import mlflow.xgboost
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import infer_signature
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

NAMES = ["conv_rate", "conv_rate_plus_val1"]
PACKAGES = {"pip_requirements": ["mlflow"]}
"""Named, as MLflow would find them out by opening each model in another process."""


def rows():
    """Return inputs as the team has them."""
    random = np.random.default_rng(5)
    frame = pd.DataFrame({"conv_rate": random.random(500).astype("float32")})
    frame["conv_rate_plus_val1"] = frame["conv_rate"] + random.integers(0, 5, 500)
    return frame


def rules(*, has_classes):
    """Return a model of the team's own, as pyfunc keeps it: probabilities by a rule, or classes."""
    import mlflow.pyfunc  # noqa: PLC0415  (it warns of itself)

    class Rules(mlflow.pyfunc.PythonModel):
        def load_context(self, context):  # noqa: ARG002  (as MLflow calls it)
            with Path(os.environ.get("OPENED_BY", os.devnull)).open("a") as file:
                print(os.getpid(), file=file)

        def predict(self, model_input: pd.DataFrame):
            scores = probabilities(model_input)
            return scores > 0.5 if has_classes else scores

    return Rules()


def probabilities(frame):
    return 1 / (1 + np.exp(4 - 8 * frame["conv_rate"].to_numpy()))


def fitted():
    """Return models of each library: over a frame, over a matrix, behind named columns."""
    x = rows()
    y = (x["conv_rate"] > 0.5).astype(int)
    named = ColumnTransformer([("numbers", StandardScaler(), NAMES[:1])])
    data = lightgbm.Dataset(x, y)
    booster = lightgbm.train({"objective": "binary", "verbose": -1}, data, 10)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    by_name = make_pipeline(named, LogisticRegression()).fit(x, y)
    return {
        "pipeline": pipeline,
        "columns": by_name,
        "xgboost": xgboost.XGBClassifier(n_estimators=10).fit(x, y),
        "lightgbm": booster,
        "matrix": to_onnx(pipeline, x.to_numpy(np.float32)[:1]),
        "frame": to_onnx(by_name, x[:1]),
        "one column": neuron(["N", 1]),
        "one number": neuron(["N"]),
    }


def neuron(shape):
    """Return a network with one neuron, as PyTorch exports it: the probability alone."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 1], [4.0, 0.5])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["y"]),
    ]
    constants = [weights]
    if len(shape) == 1:
        constants.append(helper.make_tensor("all", TensorProto.INT64, [1], [-1]))
        nodes.append(helper.make_node("Reshape", ["y", "all"], ["score"]))
    name = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "neuron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )


def neuron_scores(frame):
    sums = frame.to_numpy(np.float32) @ np.array([4.0, 0.5], np.float32)
    return 1 / (1 + np.exp(-sums))


def log_models(models, folder):
    """Log each in MLflow's default format, but scikit-learn's as skops; save one in a folder."""
    x = rows()
    signature = infer_signature(x, np.zeros(500))
    matrix = infer_signature(x.to_numpy(np.float32), np.zeros(500))
    skops = {"signature": signature, "serialization_format": "skops"}
    log = {
        "pipeline": (mlflow.sklearn, skops | {"registered_model_name": "theirs"}),
        "columns": (mlflow.sklearn, skops),
        "xgboost": (mlflow.xgboost, {"signature": signature}),
        "lightgbm": (mlflow.lightgbm, {"signature": signature}),
        "matrix": (mlflow.onnx, {"signature": matrix}),
        "frame": (mlflow.onnx, {"signature": signature}),
        "one column": (mlflow.onnx, {"signature": matrix}),
        "one number": (mlflow.onnx, {"signature": matrix}),
    }
    places = {}
    mlflow.set_experiment("elsewhere")
    with mlflow.start_run() as run:
        for name, (flavor, options) in log.items():
            logged = flavor.log_model(models[name], name=name, **options, **PACKAGES)
            places[name] = logged.model_uri
        for name, options in {
            "pickle": {"signature": signature, "serialization_format": "cloudpickle"},
            "unsigned": {"serialization_format": "skops"},
        }.items():
            logged = mlflow.sklearn.log_model(
                models["pipeline"], name=name, **options, **PACKAGES
            )
            places[name] = logged.model_uri
        for name, has_classes in (("pyfunc", False), ("classes", True)):
            logged = mlflow.pyfunc.log_model(
                python_model=rules(has_classes=has_classes),
                name=name,
                signature=signature,
                **PACKAGES,
            )
            places[name] = logged.model_uri
        wide = infer_signature(x.assign(more=1.0), np.zeros(500))
        logged = mlflow.xgboost.log_model(
            models["xgboost"], name="w", signature=wide, **PACKAGES
        )
        places["wide"] = logged.model_uri
        places["run"] = f"runs:/{run.info.run_id}/xgboost"
    places["registered"] = "models:/theirs/1"
    mlflow.xgboost.save_model(
        models["xgboost"], folder, signature=signature, **PACKAGES
    )
    places["folder"] = folder
    return places


def scores_of(models):
    """Return the probability of class 1 by each model of a library."""
    x = rows()
    scores = {}
    for name in ("pipeline", "columns", "xgboost"):
        scores[name] = models[name].predict_proba(x)[:, 1].tolist()
    scores["lightgbm"] = models["lightgbm"].predict(x).tolist()
    scores["run"] = scores["xgboost"]
    scores["folder"] = scores["xgboost"]
    scores["registered"] = scores["pipeline"]
    scores["matrix"] = scores["pipeline"]
    scores["frame"] = scores["columns"]
    scores["one column"] = scores["one number"] = neuron_scores(x).tolist()
    scores["pyfunc"] = probabilities(x).tolist()
    return scores


if __name__ == "__main__":
    address, folder, result = sys.argv[1:]
    mlflow.set_tracking_uri(address)
    models = fitted()
    found = {"places": log_models(models, folder), "scores": scores_of(models)}
    Path(result).write_text(json.dumps(found))

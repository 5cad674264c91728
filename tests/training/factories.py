"""Factories and training code as users write them, good ones and bad ones."""

from __future__ import annotations

import numpy as np
from lightgbm import LGBMClassifier
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import ColumnTransformer
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from training.estimators import columns

TEXTS = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
calls: list[tuple] = []
"""What `train` was called with, newest last."""


def lightgbm(leaves):
    """An estimator: it is put behind Gyre's columns."""
    return LGBMClassifier(num_leaves=leaves, verbose=-1)


def xgboost_on_scaled_columns(features, seed):
    """A pipeline: it is taken as it is. Its scaler sees float32, as ONNX does."""
    steps = [("columns", columns(features)), ("scaler", StandardScaler())]
    return Pipeline(
        [
            *steps,
            ("estimator", XGBClassifier(n_estimators=30, n_jobs=1, random_state=seed)),
        ]
    )


def xgboost_behind_a_scaler(features):
    """Its scalers see float64, which ONNX scales with another last digit."""
    parts = {"int64": StandardScaler(), "double": StandardScaler(), "string": TEXTS}
    names = {
        kind: [name for name in features if features[name] == kind] for kind in parts
    }
    scaled = ColumnTransformer(
        [(kind, parts[kind], names[kind]) for kind in parts if names[kind]]
    )
    return Pipeline(
        [("scaled", scaled), ("estimator", XGBClassifier(n_estimators=30, n_jobs=1))]
    )


class Sigmoid:
    """Something that no converter knows: the sigmoid of one feature, as ONNX by itself."""

    def __init__(self, feature, wrong=0.0):
        self.feature, self.wrong = feature, wrong

    def fit(self, frame, _labels):
        self.middle = np.float32(frame[self.feature].median())

    def predict_proba(self, frame):
        ones = 1 / (1 + np.exp(-(frame[self.feature].to_numpy(float) - self.middle)))
        return np.column_stack([1 - ones, ones])

    def to_onnx(self):
        nodes = [
            helper.make_node("Cast", [self.feature], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["float", "middle"], ["around"]),
            helper.make_node("Sigmoid", ["around"], ["ones"]),
            helper.make_node("Sub", ["one", "ones"], ["zeros"]),
            helper.make_node("Concat", ["zeros", "ones"], ["both"], axis=1),
        ]
        output = helper.make_tensor_value_info("both", TensorProto.FLOAT, [None, 2])
        value = np.float32(self.middle + self.wrong)
        known = {"middle": value, "one": np.float32(1)}
        constants = [
            numpy_helper.from_array(np.asarray(v), n) for n, v in known.items()
        ]
        opsets = [helper.make_opsetid("", 18)]
        kind = TensorProto.INT64
        inputs = [helper.make_tensor_value_info(self.feature, kind, [None, 1])]
        graph = helper.make_graph(nodes, "sigmoid", inputs, [output], constants)
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


class Texts(DecisionTreeClassifier):
    """Classes of another type than the label's."""

    def fit(self, matrix, y):
        return super().fit(matrix, np.where(y == 1, "yes", "no"))


class Unfitted:
    def predict_proba(self, frame):
        return np.zeros((len(frame), 2))


class Unknown(DecisionTreeClassifier):
    """A subclass, which no converter knows."""


def fails():
    raise KeyError("a table of mine")


def train(frame, folds, parameters):
    """As many leaves as the folds say."""
    calls.append((frame, folds, parameters))
    losses = {
        leaves: fold_loss(folds, parameters, leaves) for leaves in parameters["leaves"]
    }
    best = min(losses, key=losses.__getitem__)
    model = fitted(frame, parameters, best)
    return model, {"leaves": best, "fold_loss": losses[best], "threshold": 0.25}


def fitted(frame, parameters, leaves):
    settings = {"random_state": parameters["seed"], "n_jobs": 1, "deterministic": True}
    last = LGBMClassifier(num_leaves=leaves, n_estimators=20, verbose=-1, **settings)
    pipeline = Pipeline([("columns", columns(parameters["features"])), ("last", last)])
    return pipeline.fit(frame.drop(columns="label"), frame["label"])


def fold_loss(folds, parameters, leaves):
    losses = [0.0]
    for rows, validation in folds:
        answers = fitted(rows, parameters, leaves).predict_proba(
            validation.drop(columns="label")
        )
        losses.append(log_loss(validation["label"], answers[:, 1]))
    return sum(losses)


def returns_no_figures(frame, folds, parameters):
    return fitted(frame, parameters, 4)


def takes_two(frame, folds):
    return None

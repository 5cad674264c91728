"""Factories and training code as users write them, good ones and bad ones."""

import numpy as np
from lightgbm import LGBMClassifier
from onnx.parser import parse_model
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from tests.training.deliveries.couriers.training import fitted
from tests.training.deliveries.couriers.training import train as by_folds

TEXTS = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
calls = []
"""What `train` was called with, newest last."""


def lightgbm(leaves):
    """An estimator: it is put behind Gyre's columns."""
    return LGBMClassifier(num_leaves=leaves, verbose=-1)


def xgboost_behind_a_scaler(features):
    """Its scalers see float64, which ONNX scales with another last digit."""
    parts = {"int64": StandardScaler(), "double": StandardScaler(), "string": TEXTS}
    steps = []
    for kind, scaler in parts.items():
        names = [name for name in features if features[name] == kind]
        if names:
            steps.append((kind, scaler, names))
    scaled = ColumnTransformer(steps)
    return Pipeline(
        [("scaled", scaled), ("estimator", XGBClassifier(n_estimators=30, n_jobs=1))]
    )


def isotonic():
    """ONNX scores it otherwise, and skops does not know its type."""
    return CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=3)


class Sigmoid:
    """Something that no converter knows: the sigmoid of one feature, as ONNX by itself."""

    def __init__(self, feature, wrong=0.0):
        self.feature = feature
        self.wrong = wrong

    def fit(self, frame, _labels):
        self.middle = np.float32(frame[self.feature].median())

    def predict_proba(self, frame):
        ones = 1 / (1 + np.exp(-(frame[self.feature].to_numpy(float) - self.middle)))
        return np.column_stack([1 - ones, ones])

    def to_onnx(self):
        return parse_model(f"""
            <ir_version: 8, opset_import: ["": 18]>
            sigmoid (int64[N, 1] {self.feature}) => (float[N, 2] both)
            <float middle = {{{self.middle + self.wrong}}}, float one = {{1}}>
            {{
                number = Cast <to = 1> ({self.feature})
                around = Sub (number, middle)
                ones = Sigmoid (around)
                zeros = Sub (one, ones)
                both = Concat <axis = 1> (zeros, ones)
            }}
        """)


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
    """As many leaves as the folds say, and a threshold."""
    calls.append((frame, folds, parameters))
    model, figures = by_folds(frame, folds, parameters | {"trees": 20})
    return model, figures | {"threshold": 0.25}


def returns_no_figures(frame, folds, parameters):
    return fitted(frame, parameters | {"trees": 20}, 4)

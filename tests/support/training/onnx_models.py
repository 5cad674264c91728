"""Fitted pipelines to export."""

from functools import cache

import numpy as np
import pandas as pd

from core.spec.training import Estimator
from tests.training.conftest import SHIPPED
from training.model.estimators import build_pipeline

FEATURES = {
    "orders": "int64",
    "spend": "double",
    "segment": "string",
    "days": "int64",
    "value": "double",
}


FEW_TREES = {"n_estimators": 20, "max_depth": 6}


PARAMETERS = {
    "logistic_regression": {},
    "ridge": {},
    "random_forest": FEW_TREES,
    "hist_gradient_boosting": {"max_iter": 20},
    "xgboost": FEW_TREES,
    "lightgbm": FEW_TREES,
}


def customers():
    rows = 4_000
    random = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "orders": random.poisson(2, rows),
            "spend": random.exponential(60, rows).round(2),
            "segment": random.choice(["new", "repeat", "loyal", "__missing__"], rows),
            "days": random.integers(0, 180, rows),
            "value": random.lognormal(3, 1, rows),
        }
    )
    frame.loc[random.random(rows) < 0.2, "value"] = np.nan
    risk = frame.days / 60 - frame.orders / 2 - frame.spend / 100
    risk += frame.segment == "new"
    return frame, (risk + random.normal(size=rows) > 0).astype(int).to_numpy()


def spending(frame):
    """What customers spend: heavy-tailed, most of them nothing."""
    random = np.random.default_rng(4)
    amount = frame.value.fillna(10) * (1 + frame.orders)
    amount *= random.lognormal(0, 1, len(frame))
    return (amount * (random.random(len(frame)) < 0.3)).to_numpy()


def spec_of(task="classification", features=FEATURES):
    """The shipped spec with another task and other features."""
    classes = ("few", "some", "many") if task == "multiclass" else ()
    changes = {"task": task, "classes": classes, "features": features, "seed": 7}
    return SHIPPED.model_copy(update=changes)


def pipeline_of(kind, parameters, spec=None, rows=None):
    estimator = Estimator(name=kind, type=kind, parameters=parameters)
    return build_pipeline(spec or spec_of(), estimator, rows)


@cache  # no test changes what it returns
def fitted(kind, task="classification", unit=1):
    """Pipeline and rows: of classes, or of numbers in a unit."""
    frame, labels = customers()
    if task == "multiclass":
        labels = np.digitize(frame.days - 10 * frame.orders, [30, 90])
    if task == "regression":
        labels = spending(frame) * unit
    pipeline = pipeline_of(kind, PARAMETERS[kind], spec_of(task))
    return pipeline.fit(frame, labels), frame

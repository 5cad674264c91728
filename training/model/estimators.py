"""Models to be fitted: estimators by short name or by a factory, behind Gyre's own steps.

Numbers are cast to float32 first, so that scikit-learn and ONNX compare the same values.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from skl2onnx.sklapi import CastTransformer
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from core.spec import InputType, ModelSpec
from core.spec.training import ESTIMATORS, MOST_CATEGORIES, Estimator
from core.user_code import in_one_line, load_object

PRESET: dict[str, dict[str, Any]] = {
    "random_forest": {"n_jobs": -1},
    "xgboost": {"n_jobs": 1},  # boosting's threads wait for each other on busy cores
    "lightgbm": {
        "n_jobs": 1,
        "verbose": -1,
        "deterministic": True,
        "force_row_wise": True,
    },
}
"""Parameters of a short name that the spec does not give."""
SCORE_METHODS = {
    "classification": "predict_proba",
    "multiclass": "predict_proba",
    "regression": "predict",
}
"""Method of a fitted model that gives its scores, by task."""
LINEAR = {"logistic_regression", "ridge"}
NULL_AWARE = ("HistGradientBoosting", "LGBM", "XGB")
"""Beginnings of the names of classes that take nulls as missing values."""


def build_pipeline(
    spec: ModelSpec, estimator: Estimator, rows: pd.DataFrame | None = None
) -> Any:
    """Return the unfitted model over a frame with the spec's features, in that order.

    Categories of texts with many values come from `rows`, which the model will be fitted on.

    A Pipeline, or an object with its own `to_onnx`, is taken as it is. Any other estimator gets the
    matrix of `columns`; nulls are filled by the median unless it takes nulls itself.
    """
    model = make_estimator(spec, estimator)
    if isinstance(model, Pipeline) or hasattr(model, "to_onnx"):
        return model
    steps: list[tuple[str, Any]] = [("columns", columns(spec.inputs, rows))]
    if not type(model).__name__.startswith(NULL_AWARE):
        imputer = SimpleImputer(strategy="median", keep_empty_features=True)
        steps.append(("imputer", imputer))
    if estimator.type in LINEAR:
        steps.append(("scaler", StandardScaler()))
    return Pipeline([*steps, ("estimator", model)])


def columns(
    features: Mapping[str, InputType], rows: pd.DataFrame | None = None
) -> ColumnTransformer:
    """Return the step that makes a float32 matrix of a frame: numbers, then texts one-hot.

    If a text has more than MOST_CATEGORIES values in `rows`, the most frequent ones are columns.
    """
    to_float32 = CastTransformer(dtype=np.float32)
    texts = [name for name in features if features[name] == "string"]
    categories: Any = "auto"
    if rows is not None and (rows[texts].nunique() > MOST_CATEGORIES).any():
        # skl2onnx has no `max_categories` for the columns of one step.
        categories = [_frequent_values(rows[name]) for name in texts]
    one_hot = OneHotEncoder(
        categories=categories,
        handle_unknown="ignore",
        sparse_output=False,
        dtype=np.float32,
    )
    steps = {"int64": to_float32, "double": to_float32, "string": one_hot}
    parts = []
    for kind, step in steps.items():
        names = [name for name in features if features[name] == kind]
        if names:
            parts.append((kind, step, names))
    return ColumnTransformer(parts)


def _frequent_values(texts: "pd.Series[Any]") -> list[str]:
    """Return the most frequent values in order; of equally frequent ones the first."""
    counts = texts.value_counts().sort_index()
    frequent = counts.sort_values(ascending=False, kind="stable")[:MOST_CATEGORIES]
    return sorted(frequent.index)


def category_remarks(
    features: Mapping[str, InputType], rows: pd.DataFrame
) -> Iterator[str]:
    """Yield a line for each text whose values are too many for a model."""
    for name, kind in features.items():
        count = rows[name].nunique() if kind == "string" else 0
        if count > MOST_CATEGORIES:
            yield (
                f"{name} has {count:,} values in {len(rows):,} rows, as a code has: the "
                f"{MOST_CATEGORIES} most frequent are columns, all others count as unknown"
            )


def make_estimator(spec: ModelSpec, estimator: Estimator) -> Any:
    """Call the factory with its parameters and, if it takes them, features, random_state, seed.

    Each random_state that is None afterwards becomes the spec's seed.

    Raises:
        TypeError: A parameter is unknown, or the object cannot be fitted or cannot predict.
        SettingsError: The factory cannot be imported.
        Exception: The factory raises it.

    """
    paths = ESTIMATORS[spec.task]
    path = paths.get(estimator.type, estimator.type)
    factory = load_object(path)
    if estimator.type in paths:
        parameter_names = factory().get_params().keys()
        unknown_names = sorted(estimator.parameters.keys() - parameter_names)
        if unknown_names:
            raise TypeError(
                f"expected parameters out of {', '.join(parameter_names)}, found "
                f"{unknown_names}; others only with type = {path!r}"
            )
    seed = spec.seed
    arguments = {"features": spec.inputs, "random_state": seed, "seed": seed}
    signature = inspect.signature(factory).parameters
    arguments = {name: arguments[name] for name in arguments.keys() & signature.keys()}
    arguments |= PRESET.get(estimator.type, {})
    model = factory(**arguments | estimator.parameters)
    require_methods(model, "fit", SCORE_METHODS[spec.task])
    if hasattr(model, "get_params"):
        for name, value in model.get_params().items():
            if name.endswith("random_state") and value is None:
                model.set_params(**{name: seed})
    return model


def require_methods(model: Any, *methods: str) -> None:
    """Raise TypeError if `model` lacks one of these methods."""
    missing_methods = [name for name in methods if not hasattr(model, name)]
    if missing_methods:
        raise TypeError(
            f"expected an object with {' and '.join(methods)}, found a "
            f"{type(model).__name__} without {' and '.join(missing_methods)}"
        )


def estimator_problems(spec: ModelSpec) -> Iterator[str]:
    """Yield a line for each estimator that is refused before it is fitted."""
    for position, estimator in enumerate(spec.estimators):
        lowest = {name: bounds.low for name, bounds in estimator.space.items()}
        parameters = estimator.parameters | lowest
        try:
            make_estimator(
                spec, estimator.model_copy(update={"parameters": parameters})
            )
        except Exception as exc:  # noqa: BLE001  (whatever a factory raises)
            place = f"{spec.name}.toml: estimators.{position}"
            yield f"{place}: {estimator.name}: {error_line(exc)}"
    if spec.training:
        try:
            function = load_object(spec.training.function)
            inspect.signature(function).bind("frame", "folds", {})
        except Exception as exc:  # noqa: BLE001  (whatever its module raises)
            expected = "expected a function of frame, folds, parameters"
            yield f"{spec.name}.toml: training.function: {expected}: {error_line(exc)}"


def error_line(exc: Exception) -> str:
    """Return the message of a library or of a user's code, in one line."""
    if isinstance(exc, ValueError | TypeError):  # about a value: its type adds nothing
        return " ".join(str(exc).split())
    return in_one_line(exc)

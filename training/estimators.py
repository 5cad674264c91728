"""Models to be fitted: estimators by short name or by a factory, behind Gyre's own steps.

Numbers are cast to float32 first, so that scikit-learn and ONNX compare the same values.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from skl2onnx.sklapi import CastTransformer
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from core.spec import InputType, ModelSpec
from core.training_spec import ESTIMATORS, Task
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
ANSWERS = {t: "predict" if t == "regression" else "predict_proba" for t in ESTIMATORS}
LINEAR = {"logistic_regression", "ridge"}
SEES_NULLS = ("HistGradientBoosting", "LGBM", "XGB")
"""Beginnings of the names of classes that learn from a null that it is one."""


def build_pipeline(
    estimator_type: str,
    parameters: Mapping[str, Any],
    features: Mapping[str, InputType],
    seed: int,
    task: Task = "classification",
) -> Any:
    """Return the unfitted model over a frame with the columns `features`, in that order.

    A Pipeline, and what has a `to_onnx` of its own, is taken as it is. Any other estimator gets
    the matrix of `columns`, with nulls filled by the median unless it sees them itself.
    """
    made = make_estimator(estimator_type, parameters, features, seed, task)
    if isinstance(made, Pipeline) or hasattr(made, "to_onnx"):
        return made
    steps: list[tuple[str, Any]] = [("columns", columns(features))]
    if not type(made).__name__.startswith(SEES_NULLS):
        steps.append(
            ("imputer", SimpleImputer(strategy="median", keep_empty_features=True))
        )
    if estimator_type in LINEAR:
        steps.append(("scaler", StandardScaler()))
    return Pipeline([*steps, ("estimator", made)])


def columns(features: Mapping[str, InputType]) -> ColumnTransformer:
    """Return the step that makes a float32 matrix of a frame: numbers, then texts one-hot."""
    parts: dict[str, Any] = {
        "int64": CastTransformer(dtype=np.float32),
        "double": CastTransformer(dtype=np.float32),
        "string": OneHotEncoder(
            handle_unknown="ignore", sparse_output=False, dtype=np.float32
        ),
    }
    names = {kind: [n for n, its in features.items() if its == kind] for kind in parts}
    return ColumnTransformer(
        [(kind, parts[kind], names[kind]) for kind in parts if names[kind]]
    )


def make_estimator(
    estimator_type: str,
    parameters: Mapping[str, Any],
    features: Mapping[str, InputType],
    seed: int,
    task: Task,
) -> Any:
    """Call the factory with `parameters` and, if it takes them, features, random_state, seed.

    Each random_state that is None afterwards becomes `seed`. Raises TypeError or ValueError for a
    parameter that is refused, and for an object that cannot be fitted or asked; SettingsError for
    a factory that cannot be imported; and whatever a factory raises.
    """
    path = ESTIMATORS[task].get(estimator_type, estimator_type)
    factory = load_object(path)
    if estimator_type in ESTIMATORS[task]:
        known = factory().get_params()
        if unknown := sorted(parameters.keys() - known.keys()):
            expected = f"expected parameters out of {', '.join(known)}"
            raise TypeError(
                f"{expected}, found {unknown}; others only with type = {path!r}"
            )
    more = {"features": features, "random_state": seed, "seed": seed}
    taken = more.keys() & inspect.signature(factory).parameters.keys()
    given = {name: more[name] for name in taken} | PRESET.get(estimator_type, {})
    made = factory(**{**given, **parameters})
    require(made, "fit", ANSWERS[task])
    if hasattr(made, "get_params"):
        states = {
            k: v for k, v in made.get_params().items() if k.endswith("random_state")
        }
        made.set_params(
            **{name: seed for name, state in states.items() if state is None}
        )
    return made


def require(model: Any, *methods: str) -> None:
    """Raise TypeError if `model` lacks one of these methods."""
    if lacking := [name for name in methods if not hasattr(model, name)]:
        found = f"found a {type(model).__name__} without {' and '.join(lacking)}"
        raise TypeError(f"expected an object with {' and '.join(methods)}, {found}")


def estimator_problems(spec: ModelSpec) -> Iterator[str]:
    """Yield a line for each estimator, and each bound of a space, that is refused unfitted."""
    for at, each in enumerate(spec.estimators):
        tried = [(f"estimators.{at}", each.parameters)]
        for name, bounds in each.space.items():
            where = f"estimators.{at}.space.{name}"
            tried += [
                (where, each.parameters | {name: end})
                for end in (bounds.low, bounds.high)
            ]
        for where, parameters in tried:
            try:
                made = make_estimator(
                    each.type, parameters, spec.inputs, spec.seed, spec.task
                )
                _check_values(made)
            except Exception as exc:  # noqa: BLE001  (whatever a factory raises)
                yield f"{spec.name}.toml: {where}: {each.name}: {reason(exc)}"
                break  # its other bounds would say the same
    if spec.training:
        try:
            inspect.signature(load_object(spec.training.function)).bind(
                "frame", "folds", {}
            )
        except Exception as exc:  # noqa: BLE001  (whatever its module raises)
            expected = "expected a function of frame, folds, parameters"
            yield f"{spec.name}.toml: training.function: {expected}: {reason(exc)}"


def _check_values(estimator: Any) -> None:
    """Raise scikit-learn's ValueError for values that it would refuse at fit."""
    # Private: the one public way is to fit. It ends with a public one in scikit-learn.
    # Only scikit-learn's own have them.
    if hasattr(estimator, "_parameter_constraints"):
        estimator._validate_params()  # noqa: SLF001


def reason(exc: Exception) -> str:
    """Return what a library or a user's code says, in one line."""
    if isinstance(exc, ValueError | TypeError):  # about a value: its type adds nothing
        return " ".join(str(exc).split())
    return in_one_line(exc)

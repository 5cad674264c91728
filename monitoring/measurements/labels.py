"""Label drift: the distance of known outcomes from a version's evaluation."""

import math
from collections.abc import Iterator

import pandas as pd

from core.spec import ModelSpec
from monitoring.log.outcomes import Outcomes
from monitoring.measurements.performance import SURELY, MeasuredMetric
from training.evaluation.reference import LABEL, Reference


def label_change(
    spec: ModelSpec, outcomes: Outcomes, reference: Reference
) -> Iterator[MeasuredMetric]:
    """Measure the largest change of a class's share, or the change of the mean of numbers.

    The change is bad from `label_change` plus three standard errors of the difference (Welch,
    Biometrika 34, 1947).

    Args:
        spec: Spec of the model.
        outcomes: Outcomes that are known by now.
        reference: Outcomes of the version's evaluation.

    """
    labels = pd.Series(outcomes.labels)
    old_labels = reference.rows[LABEL].dropna()
    if old_labels.empty:
        return
    allowed = spec.monitoring.label_change
    changes: list[tuple[float, float, str]] = []
    for name, values, old_values in _figures(spec, labels, old_labels):
        value = values.mean()
        old_value = old_values.mean()
        variance = values.var(ddof=0) / len(values)
        old_variance = old_values.var(ddof=0) / len(old_values)
        limit = allowed + SURELY * math.sqrt(variance + old_variance)
        words = f"{name} {value:.3f} ({outcomes.about}), was {old_value:.3f}"
        changes.append((abs(value - old_value), limit, words))
    change, limit, words = max(changes, key=lambda each: each[0] - each[1])
    if not math.isfinite(limit):  # a label is infinite, or too large for a variance
        return
    yield MeasuredMetric(
        name=f"{outcomes.kind}/label_change",
        metric="label_change",
        kind="label_drift",
        value=change,
        limit=limit,
        rows=len(labels),
        words=f"{words}, a change of more than {limit:.3f} counts",
    )


def _figures(
    spec: ModelSpec, labels: pd.Series, old_labels: pd.Series
) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """Yield a name and two columns, of now and of the evaluation, whose means are compared."""
    if spec.task == "regression":
        is_constant = old_labels.min() == old_labels.max()
        deviation = 1.0 if is_constant else old_labels.std(ddof=0)
        name = f"mean of {spec.label_name} in standard deviations"
        yield name, labels / deviation, old_labels / deviation
        return
    classes = dict(enumerate(spec.classes)) or {1: "1"}
    for position, name in classes.items():
        is_class = (labels == position).astype(float)
        was_class = (old_labels == position).astype(float)
        yield f"share of {spec.label_name} {name}", is_class, was_class

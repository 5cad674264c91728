"""Label drift: how far outcomes known by now lie from those that a version was evaluated on."""

import math
from collections.abc import Iterator

import pandas as pd

from core.spec import ModelSpec
from monitoring.log.outcomes import Outcomes
from monitoring.measurements.performance import SURELY, MeasuredMetric
from training.evaluation.reference import LABEL, Reference

LABEL_DRIFT = "label_drift"
"""The kind of this figure."""


def label_change(
    spec: ModelSpec, outcomes: Outcomes, reference: Reference
) -> Iterator[MeasuredMetric]:
    """Measure the largest change of a class's share; of numbers that of the mean.

    It is bad from `label_change` and three standard errors of a difference on (Welch, Biometrika
    34, 1947).

    Args:
        spec: The model.
        outcomes: What came true.
        reference: What had come true when the version was evaluated.

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
    yield MeasuredMetric(
        name=f"{outcomes.kind}/label_change",
        metric="label_change",
        kind=LABEL_DRIFT,
        value=change,
        limit=limit,
        rows=len(labels),
        words=f"{words}; a change of more than {limit:.3f} counts",
    )


def _figures(
    spec: ModelSpec, labels: pd.Series, old_labels: pd.Series
) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """Yield what is compared, in words, now and at the evaluation: the means of these columns."""
    if spec.task == "regression":
        deviation = old_labels.std(ddof=0) or 1.0
        name = f"mean of {spec.label} in standard deviations"
        yield name, labels / deviation, old_labels / deviation
        return
    classes = dict(enumerate(spec.classes)) or {1: "1"}
    for position, name in classes.items():
        is_class = (labels == position).astype(float)
        was_class = (old_labels == position).astype(float)
        yield f"share of {spec.label} {name}", is_class, was_class

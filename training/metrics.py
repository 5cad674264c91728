"""Metrics of a binary classifier, each defined where MLflow users expect it, and their bootstrap.

y: int64 [N] of 0 and 1; p: float [N], probability of 1; threshold: p at or above it means 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn import metrics as sk

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Labels = NDArray[np.int64]
    Scores = NDArray[np.float64]

DIGITS = 6
"""Scores are rounded to this before the threshold, in training and serving alike (ties)."""
RESAMPLES = 1000
TINY = np.finfo(np.float32).eps


def log_loss(y: Labels, p: Scores) -> float:
    """Mean of -log(probability of what happened), in nats; p is kept off 0 and 1 by 1.2e-7."""
    clipped = np.clip(p, TINY, 1 - TINY)
    return float(-np.mean(np.where(y == 1, np.log(clipped), np.log1p(-clipped))))


def predict(p: Scores, threshold: float) -> Labels:
    return (np.round(p, DIGITS) >= threshold).astype(np.int64)


# Of labels, scores and predicted classes; nan where it is undefined.
METRICS: dict[str, Callable[[Labels, Scores, Labels], float]] = {
    "log_loss": lambda y, p, _: log_loss(y, p),
    "auc": lambda y, p, _: sk.roc_auc_score(y, p) if len(np.unique(y)) > 1 else np.nan,
    "average_precision": lambda y, p, _: sk.average_precision_score(y, p),
    "accuracy": lambda y, _, c: float(np.mean(y == c)),
    "precision": lambda y, _, c: sk.precision_score(y, c, zero_division=0),
    "recall": lambda y, _, c: sk.recall_score(y, c, zero_division=0),
    "f1": lambda y, _, c: sk.f1_score(y, c, zero_division=0),
}


def all_metrics(y: Labels, p: Scores, threshold: float) -> dict[str, float]:
    """Every metric and the confusion matrix (tn, fp, fn, tp)."""
    classes = predict(p, threshold)
    cells = sk.confusion_matrix(y, classes, labels=[0, 1]).ravel()
    values = {name: float(metric(y, p, classes)) for name, metric in METRICS.items()}
    return values | dict(zip(("tn", "fp", "fn", "tp"), map(float, cells), strict=True))


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion on the same rows, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    name: str, y: Labels, challenger: Scores, champion: Scores, threshold: float, seed: int
) -> Difference:
    """Percentile bootstrap over rows, both models on the same resample (Efron 1979)."""
    metric, random = METRICS[name], np.random.default_rng(seed)
    models = [(p, predict(p, threshold)) for p in (challenger, champion)]

    def difference(rows: NDArray[np.int64] | slice) -> float:
        ours, theirs = (metric(y[rows], p[rows], c[rows]) for p, c in models)
        return float(ours - theirs)

    samples = [difference(random.integers(0, len(y), len(y))) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Difference(difference(slice(None)), float(low), float(high))

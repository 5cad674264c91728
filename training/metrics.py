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


def metric(name: str, threshold: float) -> Callable[[Labels, Scores], float]:
    """Return metric `name` as a function of labels and scores; nan where it is undefined."""
    by_score: dict[str, Callable[[Labels, Scores], float]] = {
        "log_loss": log_loss,
        "auc": lambda y, p: float(sk.roc_auc_score(y, p)) if len(np.unique(y)) > 1 else np.nan,
        "average_precision": lambda y, p: float(sk.average_precision_score(y, p)),
    }
    by_class: dict[str, Callable[[Labels, Labels], float]] = {
        "accuracy": lambda y, c: float(np.mean(y == c)),
        "precision": lambda y, c: float(sk.precision_score(y, c, zero_division=0)),
        "recall": lambda y, c: float(sk.recall_score(y, c, zero_division=0)),
        "f1": lambda y, c: float(sk.f1_score(y, c, zero_division=0)),
    }
    if name in by_score:
        return by_score[name]
    return lambda y, p: by_class[name](y, predict(p, threshold))


NAMES = ("log_loss", "auc", "average_precision", "accuracy", "precision", "recall", "f1")


def all_metrics(y: Labels, p: Scores, threshold: float) -> dict[str, float]:
    """Every metric and the confusion matrix (tn, fp, fn, tp)."""
    cells = sk.confusion_matrix(y, predict(p, threshold), labels=[0, 1]).ravel()
    counted = zip(("tn", "fp", "fn", "tp"), cells, strict=True)
    values = {name: metric(name, threshold)(y, p) for name in NAMES}
    return values | {name: float(count) for name, count in counted}


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
    of, random = metric(name, threshold), np.random.default_rng(seed)
    samples = []
    for _ in range(RESAMPLES):
        rows = random.integers(0, len(y), len(y))
        samples.append(of(y[rows], challenger[rows]) - of(y[rows], champion[rows]))
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Difference(of(y, challenger) - of(y, champion), float(low), float(high))

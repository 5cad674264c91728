"""Metrics of a model, each defined where MLflow users expect it, and their bootstrap.

Of classes: y int64 [N] of 0 and 1; p float [N], probability of 1; threshold: p at or above it means
1. Of numbers: y float [N]; p float [N], the number predicted; no threshold, and no costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_server.served_model import rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from stack.spec import Costs

    Labels = NDArray[np.int64] | NDArray[np.float64]
    Scores = NDArray[np.float64]

RESAMPLES = 1000
AT_ONCE = (50, 25, 10, 5, 1)
MOST_WEIGHTS = 5_000_000
"""Resamples measured together: many, as long as their weights are few (40 MB)."""
TINY = np.finfo(np.float32).eps
CELLS = ("tn", "fp", "fn", "tp")


@dataclass(frozen=True)
class Scored:
    """What one model says of the rows, and from which probability on it says 1.

    threshold: None where a number is predicted and not a class.
    """

    scores: Scores
    threshold: float | None


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def log_loss(y: Labels, p: Scores) -> float:
    """Mean of -log(probability of what happened), in nats; p is kept off 0 and 1 by 1.2e-7."""
    return float(np.mean(_losses(y, p)))


def rmse(y: Labels, p: Scores) -> float:
    """Root of the mean squared error, in the label's unit."""
    return float(np.sqrt(np.mean((y - p) ** 2)))


def losses(y: Labels, model: Scored) -> Scores:
    """Each row's log loss; where a number is predicted its squared error; float [N]."""
    return (y - model.scores) ** 2 if model.threshold is None else _losses(y, model.scores)


LOSSES: dict[str, Callable[[Labels, Scores], float]] = {"log_loss": log_loss, "rmse": rmse}
"""By the name that a spec's task has for its loss."""


def predict(p: Scores, threshold: float | None) -> Labels:
    """What is answered: the class, or without a threshold the number itself."""
    said = rounded(p, threshold)
    return said if threshold is None else (said >= threshold).astype(np.int64)


def cost(costs: Costs, tp: Any, fp: Any, fn: Any) -> Any:
    """Cost of so many rows: of acting on the predicted 1s, and of the losses that remain."""
    return costs.action * (tp + fp) + costs.loss * (fn + (1 - costs.averted) * tp)


def policy_costs(y: Labels, costs: Costs) -> dict[str, float]:
    """Cost per row without a model: of acting on nobody, and on everybody."""
    ones, none = np.mean(y), np.float64(0)
    return {
        "cost_nobody": float(cost(costs, none, none, ones)),
        "cost_everybody": float(cost(costs, ones, 1 - ones, none)),
    }


def best_constant(y: Labels, threshold: float | None, costs: Costs | None) -> dict[str, float]:
    """Every metric of the constant that is best at it on these rows, which no model can know.

    Of classes their prevalence, which says of everybody what most are; it costs what acting on
    nobody or on everybody does. Of numbers their mean, for mae their median.
    """

    def of(constant: Any) -> dict[str, float]:
        at = None if threshold is None else 0.5
        return all_metrics(y, Scored(np.full(len(y), float(constant)), at), costs)

    found = of(np.mean(y))
    if threshold is None:
        return found | {"mae": of(np.median(y))["mae"]}
    return found | ({"cost": min(policy_costs(y, costs).values())} if costs else {})


def all_metrics(y: Labels, model: Scored, costs: Costs | None) -> dict[str, float]:
    """Every metric of its kind; nan where one is undefined.

    Of classes also the confusion matrix (tn, fp, fn, tp), and the cost where there are costs.
    """
    measured = _measured(y, model, costs, np.ones((1, len(y))))
    return {name: float(value[0]) for name, value in measured.items()}


def resampled(
    y: Labels, models: Mapping[str, Scored], costs: Costs | None, seed: int
) -> dict[str, dict[str, Scores]]:
    """Model → metric → its values in bootstrap resamples of the rows (Efron 1979).

    All models are measured on the same resamples, so that their differences are paired.
    """
    random, count = np.random.default_rng(seed), len(y)
    parts: dict[str, list[dict[str, Scores]]] = {name: [] for name in models}
    once = next(each for each in AT_ONCE if each * count <= MOST_WEIGHTS or each == 1)
    for _ in range(RESAMPLES // once):
        drawn = (random.integers(0, count, count) for _ in range(once))
        weights = np.stack([np.bincount(rows, minlength=count) for rows in drawn]).astype(float)
        for name, model in models.items():
            parts[name].append(_measured(y, model, costs, weights))
    return {
        name: {metric: np.concatenate([part[metric] for part in found]) for metric in found[0]}
        for name, found in parts.items()
    }


def interval(value: float, samples: Scores) -> Interval:
    """Percentile interval; resamples where the metric is undefined do not count."""
    if np.isnan(samples).all():
        return Interval(value, np.nan, np.nan)
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _losses(y: Labels, p: Scores) -> Scores:
    clipped = np.clip(p, TINY, 1 - TINY)
    return -np.where(y == 1, np.log(clipped), np.log1p(-clipped))


def _measured(y: Labels, model: Scored, costs: Costs | None, weights: Scores) -> dict[str, Scores]:
    """Metric → float [B], the rows counted as often as each line of weights [B, N] says."""
    if model.threshold is None:
        return _of_numbers(y, model.scores, weights)
    return _of_classes(y, model.scores, model.threshold, costs, weights)


def _of_numbers(y: Labels, p: Scores, weights: Scores) -> dict[str, Scores]:
    """R² is 1 - mean squared error / variance of the label, undefined where that is 0."""
    rows = weights.sum(axis=1)
    squared = weights @ (y - p) ** 2 / rows
    around = y - np.median(y)  # else the difference of two large sums
    power = weights @ around**2 / rows
    variance = power - (weights @ around / rows) ** 2
    variance = np.where(variance > TINY * power, variance, np.nan)
    absolute = weights @ np.abs(y - p) / rows
    return {"rmse": np.sqrt(squared), "mae": absolute, "r2": 1 - squared / variance}


def _of_classes(
    y: Labels, p: Scores, threshold: float, costs: Costs | None, weights: Scores
) -> dict[str, Scores]:
    """AUC is the area below the ROC curve by trapezoids (ties count half); average precision the
    sum of precision over the steps in recall. Precision, recall and F1 are 0 where undefined.
    """
    said, rows = predict(p, threshold), weights.sum(axis=1)
    kinds = np.stack([(y == a) & (said == b) for a in (0, 1) for b in (0, 1)], axis=1)
    cells = dict(zip(CELLS, (weights @ kinds.astype(float)).T, strict=True))
    tn, fp, fn, tp = cells.values()
    order = np.argsort(-p, kind="stable")
    ends = np.append(np.diff(p[order]) != 0, True)  # ties are one step
    drawn = weights[:, order]
    hits = _steps(drawn * y[order], ends)
    misses = _steps(drawn * (1 - y[order]), ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        precisions = np.nan_to_num(hits / (hits + misses))
        auc = np.trapezoid(hits, misses, axis=1) / (hits[:, -1] * misses[:, -1])
        average = np.sum(np.diff(hits) * precisions[:, 1:], axis=1) / hits[:, -1]
        return {
            "log_loss": weights @ _losses(y, p) / rows,
            "brier": weights @ (p - y) ** 2 / rows,
            "auc": auc,
            "average_precision": average,
            "accuracy": (tn + tp) / rows,
            "precision": np.nan_to_num(tp / (tp + fp)),
            "recall": np.nan_to_num(tp / (tp + fn)),
            "f1": np.nan_to_num(2 * tp / (2 * tp + fp + fn)),
            **({"cost": cost(costs, tp, fp, fn) / rows} if costs else {}),
            **cells,
        }


def _steps(counted: Scores, ends: NDArray[np.bool_]) -> Scores:
    """Running sums [B, steps + 1] at the end of each run of ties, from 0."""
    return np.pad(np.cumsum(counted, axis=1)[:, ends], ((0, 0), (1, 0)))

"""Metrics of a model, and their bootstrap.

Of classes: y int64 [N] of 0 and 1; p float [N], probability of 1; p at or above the threshold means
1. Of numbers: y float [N]; p float [N], the number predicted; no threshold, and no costs. Of many
classes: y [N], positions of K; p float [N, K], the probability of each; the largest is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.training_spec import Costs, Task
from mlflow_server.served_model import rounded

Labels: TypeAlias = NDArray[np.int64] | NDArray[np.float64]
Scores: TypeAlias = NDArray[np.float64]
RESAMPLES, AT_ONCE = 1000, 50
MOST_WEIGHTS = 5_000_000
"""Of resamples that are measured together (40 MB)."""
TINY = np.finfo(np.float32).eps
CELLS = ("tn", "fp", "fn", "tp")
BINS = 10


@dataclass(frozen=True)
class Scored:
    """What one model says of the rows; threshold: None of numbers and of many classes."""

    scores: Scores
    threshold: float | None

    @property
    def task(self) -> Task:
        if self.scores.ndim > 1:
            return "multiclass"
        return "regression" if self.threshold is None else "classification"

    @property
    def top(self) -> Scores:
        """The scores [N]; of many classes the probability of the one that is answered."""
        return self.scores.max(axis=1) if self.scores.ndim > 1 else self.scores

    def of(self, rows: Any) -> Scored:
        return Scored(self.scores[rows], self.threshold)

    def rounded(self) -> Scored:
        return Scored(rounded(self.scores, self.threshold), self.threshold)


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Segment:
    """One value of a column; prevalence: mean label; selected: mean prediction."""

    value: str
    rows: int
    prevalence: float
    selected: float
    metrics: dict[str, float]


def losses(y: Labels, model: Scored) -> Scores:
    """Each row's squared error, of classes its -log(probability of what happened); float [N].

    p is kept off 0 and 1 by 1.2e-7.
    """
    if model.task == "regression":
        return (y - model.scores) ** 2
    clipped = np.clip(model.scores, TINY, 1 - TINY)
    if model.task == "multiclass":
        return -np.log(clipped[np.arange(len(y)), y.astype(np.int64)])
    return -np.where(y == 1, np.log(clipped), np.log1p(-clipped))


def log_loss(y: Labels, p: Scores) -> float:
    return float(np.mean(losses(y, Scored(p, 0.5))))


def rmse(y: Labels, p: Scores) -> float:
    return float(np.sqrt(np.mean((y - p) ** 2)))


def one_hot(y: Labels, classes: int) -> Scores:
    return np.eye(classes)[y.astype(np.int64)]


LOSSES: dict[str, Callable[[Labels, Scores], float]] = {
    "log_loss": log_loss,
    "rmse": rmse,
}
"""By the name that a spec's task has for its loss."""


def predict(p: Scores, threshold: float | None) -> Labels:
    """What is answered: the class (of many its position), or without a threshold the number."""
    answers = rounded(p, threshold)
    if answers.ndim > 1:
        largest: NDArray[np.int64] = answers.argmax(axis=1)
        return largest
    return answers if threshold is None else (answers >= threshold).astype(np.int64)


def cost(costs: Costs, tp: Any, fp: Any, fn: Any) -> Any:
    """Cost of so many rows: of acting on the predicted 1s, and of the losses that remain."""
    return costs.action * (tp + fp) + costs.loss * (fn + (1 - costs.averted) * tp)


def policy_costs(y: Labels, costs: Costs) -> dict[str, float]:
    """Cost per row without a model: of acting on nobody, and on everybody."""
    ones = float(np.mean(y))
    return {
        "cost_nobody": float(cost(costs, 0, 0, ones)),
        "cost_everybody": float(cost(costs, ones, 1 - ones, 0)),
    }


def best_constant(y: Labels, model: Scored, costs: Costs | None) -> dict[str, float]:
    """Every metric of the constant that is best at it on these rows, which no model can know.

    Of classes their prevalence; its cost is the smaller one of acting on nobody and on everybody.
    Of numbers their mean, for mae their median. model: one of the same task.
    """
    truth = y if model.task != "multiclass" else one_hot(y, model.scores.shape[1])
    constant = np.broadcast_to(truth.mean(axis=0), truth.shape)
    metrics = all_metrics(
        y, Scored(constant, None if model.threshold is None else 0.5), costs
    )
    if model.task == "regression":
        metrics["mae"] = float(np.mean(np.abs(y - np.median(y))))
    elif costs:
        metrics["cost"] = min(policy_costs(y, costs).values())
    return metrics


def all_metrics(y: Labels, model: Scored, costs: Costs | None) -> dict[str, float]:
    """Every metric of its kind; nan where one is undefined.

    Of classes also the confusion matrix (tn, fp, fn, tp), and the cost where there are costs.
    """
    metrics = _weighted(y, model, costs, np.ones((1, len(y))))
    return {name: float(value[0]) for name, value in metrics.items()}


def resampled(
    y: Labels, models: Mapping[str, Scored], costs: Costs | None, seed: int
) -> dict[str, dict[str, Scores]]:
    """Model → metric → its values in bootstrap resamples of the rows (Efron 1979).

    All models are measured on the same resamples, so that their differences are paired.
    """
    random, count = np.random.default_rng(seed), len(y)
    at_once = min(AT_ONCE, max(1, MOST_WEIGHTS // count))
    parts: dict[str, list[dict[str, Scores]]] = {name: [] for name in models}
    for done in range(0, RESAMPLES, at_once):
        drawn = random.integers(0, count, (min(at_once, RESAMPLES - done), count))
        weights = np.stack(
            [np.bincount(rows, minlength=count) for rows in drawn]
        ).astype(float)
        for name, model in models.items():
            parts[name].append(_weighted(y, model, costs, weights))
    return {
        name: {
            metric: np.concatenate([part[metric] for part in own]) for metric in own[0]
        }
        for name, own in parts.items()
    }


def interval(value: float, samples: Scores) -> Interval:
    """Percentile interval; resamples where the metric is undefined do not count."""
    if np.isnan(samples).all():
        return Interval(value, np.nan, np.nan)
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _weighted(
    y: Labels, model: Scored, costs: Costs | None, weights: Scores
) -> dict[str, Scores]:
    """Metric → float [B], the rows counted as often as each line of weights [B, N] says.

    scikit-learn's and SciPy's functions take 12 to 16 s for a metric's interval.
    """
    if model.task == "regression":
        return _of_numbers(y, model.scores, weights)
    if model.task == "multiclass":
        return _of_many_classes(y, model, weights)
    return _of_classes(y, model, costs, weights)


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
    y: Labels, model: Scored, costs: Costs | None, weights: Scores
) -> dict[str, Scores]:
    """AUC by trapezoids (ties count half); average precision: the sum of precision over the steps
    in recall. Precision, recall and F1 are 0 where undefined.
    """
    p, rows, answers = (
        model.scores,
        weights.sum(axis=1),
        predict(model.scores, model.threshold),
    )
    tn, fp, fn, tp = (
        weights @ ((y == a) & (answers == b)) for a in (0, 1) for b in (0, 1)
    )
    order = np.argsort(-p, kind="stable")
    ends = np.append(np.diff(p[order]) != 0, True)  # ties are one step
    counted = (
        np.cumsum(weights[:, order] * of[order], axis=1)[:, ends] for of in (y, 1 - y)
    )
    hits, misses = (np.pad(each, ((0, 0), (1, 0))) for each in counted)  # from 0
    with np.errstate(invalid="ignore", divide="ignore"):
        precisions = np.nan_to_num(hits / (hits + misses))
        metrics = {
            "log_loss": weights @ losses(y, model) / rows,
            "brier": weights @ (p - y) ** 2 / rows,
            "auc": np.trapezoid(hits, misses, axis=1) / (hits[:, -1] * misses[:, -1]),
            "average_precision": np.sum(np.diff(hits) * precisions[:, 1:], axis=1)
            / hits[:, -1],
            "accuracy": (tn + tp) / rows,
            "precision": np.nan_to_num(tp / (tp + fp)),
            "recall": np.nan_to_num(tp / (tp + fn)),
            "f1": np.nan_to_num(2 * tp / (2 * tp + fp + fn)),
        }
    if costs:
        metrics["cost"] = cost(costs, tp, fp, fn) / rows
    return metrics | dict(zip(CELLS, (tn, fp, fn, tp), strict=True))


def _of_many_classes(y: Labels, model: Scored, weights: Scores) -> dict[str, Scores]:
    """Precision, recall and F1 are macro-averaged: the mean over the classes that came true or are
    predicted, 0 where undefined, as scikit-learn has it. Brier: the sum over all classes.
    """
    p, rows = model.scores, weights.sum(axis=1)
    truth, answers = (one_hot(each, p.shape[1]) for each in (y, predict(p, None)))
    hits, actual, predicted = (
        weights @ cells for cells in (truth * answers, truth, answers)
    )
    classes = np.sum(actual + predicted > 0, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "log_loss": weights @ losses(y, model) / rows,
            "brier": weights @ np.sum((p - truth) ** 2, axis=1) / rows,
            "accuracy": hits.sum(axis=1) / rows,
            "precision": np.nan_to_num(hits / predicted).sum(axis=1) / classes,
            "recall": np.nan_to_num(hits / actual).sum(axis=1) / classes,
            "f1": np.nan_to_num(2 * hits / (actual + predicted)).sum(axis=1) / classes,
        }


def top_class(y: Labels, model: Scored) -> tuple[Labels, Scores]:
    """What calibration compares: labels and scores; of many classes whether the predicted one came
    true, and its probability.
    """
    if model.task != "multiclass":
        return y, model.scores
    return (predict(model.scores, None) == y).astype(np.int64), model.top


def by_segment(
    column: pd.Series[str], y: Labels, model: Scored, costs: Costs | None
) -> tuple[Segment, ...]:
    """Every value of `column` (one per row), in order; metrics are nan where undefined."""
    segments = []
    for value in sorted(set(column)):
        rows = (column == value).to_numpy()
        own = model.of(rows)
        selected = float(predict(own.scores, own.threshold).mean())
        metrics = all_metrics(y[rows], own, costs)
        segments.append(
            Segment(value, int(rows.sum()), float(y[rows].mean()), selected, metrics)
        )
    return tuple(segments)


def fairness(segments: Sequence[Segment]) -> dict[str, float]:
    """Gaps between the largest and the smallest value over segments of classes; {} for none.

    demographic_parity_difference: of the share predicted 1 (Dwork et al. 2012).
    equal_opportunity_difference: of that share among the true 1s (Hardt et al. 2016).
    largest_gap: of these two and that of the share among the true 0s (equalised odds).
    """
    if not segments:
        return {}
    cells = pd.DataFrame([segment.metrics for segment in segments])
    shares = pd.DataFrame(
        {
            "parity": [segment.selected for segment in segments],
            "opportunity": cells["tp"] / (cells["tp"] + cells["fn"]),
            "false_alarms": cells["fp"] / (cells["fp"] + cells["tn"]),
        }
    )
    # A share of no rows does not count.
    gaps = (shares.max() - shares.min()).fillna(0.0)
    return {
        "demographic_parity_difference": float(gaps["parity"]),
        "equal_opportunity_difference": float(gaps["opportunity"]),
        "largest_gap": float(gaps.max()),
    }


def calibration(y: Labels, p: Scores) -> dict[str, float]:
    """Expected calibration error, and the parts of the mean squared error, over the bins.

    ece: mean of |mean label - mean score| over the bins, weighted by their rows (Naeini et al.
    2015). Murphy (1973): mean squared error (of probabilities: the Brier score) = reliability -
    resolution + uncertainty, up to what varies within a bin.
    """
    share, said, seen = bins(y, p)
    return {
        "ece": float(share @ np.abs(seen - said)),
        "reliability": float(share @ (seen - said) ** 2),
        "resolution": float(share @ (seen - y.mean()) ** 2),
        "uncertainty": float(y.var()),
    }


def bins(y: Labels, p: Scores) -> tuple[Scores, Scores, Scores]:
    """Share of the rows, mean score, mean label of up to ten bins of about equal size, by score.

    Equal scores lie in one bin.
    """
    edges = np.unique(np.quantile(p, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    number = np.searchsorted(edges, p)
    rows = np.bincount(number)
    return rows / len(y), np.bincount(number, p) / rows, np.bincount(number, y) / rows

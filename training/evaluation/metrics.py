"""Metrics of a model, and their bootstrap.

The metrics equal scikit-learn's. Shares of a confusion matrix, and areas under the two curves
of its thresholds, are computed here: a bootstrap measures 400 times, and scikit-learn checks its
input anew in each of its functions.

| task           | y [N]                  | scores                        | answer                   |
|----------------|------------------------|-------------------------------|--------------------------|
| classification | int64, 0 and 1         | [N], probability of 1         | 1 from the threshold on  |
| regression     | float                  | [N], the number predicted     | that number              |
| multiclass     | positions of K classes | [N, K], probability of each   | the most probable class  |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    confusion_matrix_at_thresholds,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from core.spec import MISSING
from core.spec.training import LOWER_IS_BETTER, Costs, Metric, Task
from mlflow_server.manifest import SCORE_DIGITS, rounded_one

Labels: TypeAlias = NDArray[np.int64] | NDArray[np.float64]
Scores: TypeAlias = NDArray[np.float64]
SMALLEST_PROBABILITY = np.finfo(np.float32).eps
"""Log loss replaces smaller probabilities by this one, as scikit-learn does for float32."""
CELLS = ("tn", "fp", "fn", "tp")
BINS = 10
PARITY = "demographic_parity_difference"
GAPS = {
    PARITY: ("all",),
    "equal_opportunity_difference": ("true 1s",),
    "largest_gap": ("all", "true 1s", "true 0s"),
}
"""The shares of a segment that a figure of fairness compares; the largest difference counts."""


def rounded(scores: ArrayLike, threshold: float | None) -> NDArray[np.float64]:
    """Round scores as `rounded_one` rounds each of them, to the bit."""
    exact = np.asarray(scores, np.float64)
    if threshold is None and exact.ndim == 1:
        return np.array([rounded_one(score, threshold) for score in exact.tolist()])
    return np.round(exact, SCORE_DIGITS)


@dataclass(frozen=True)
class Scored:
    """Scores of one model. threshold: None for a regression and for many classes."""

    scores: Scores
    threshold: float | None

    @property
    def task(self) -> Task:
        if self.scores.ndim > 1:
            return "multiclass"
        return "regression" if self.threshold is None else "classification"

    @property
    def top(self) -> Scores:
        """The scores [N]; for many classes the probability of the predicted class."""
        return self.scores.max(axis=1) if self.scores.ndim > 1 else self.scores

    @property
    def predictions(self) -> Labels:
        return predict(self.scores, self.threshold)

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


class Share(NamedTuple):
    """A share, and the number of rows that it is a share of."""

    value: float
    rows: int


@dataclass(frozen=True)
class Segment:
    """The rows with one value of a column. prevalence: mean label; selected: mean prediction."""

    value: str
    rows: int
    prevalence: float
    selected: float
    metrics: dict[str, float]
    # Evaluations of earlier releases have one column, without its name.
    column: str = ""

    @property
    def shares(self) -> dict[str, Share]:
        """Shares predicted 1 of two classes: of all rows, of the true 1s, of the true 0s."""
        return {
            "all": Share(self.selected, self.rows),
            "true 1s": self._share("tp", "fn"),
            "true 0s": self._share("fp", "tn"),
        }

    def _share(self, cell: str, other_cell: str) -> Share:
        """Return the share of a cell of the confusion matrix in two cells; nan if both are empty."""
        count = self.metrics[cell] + self.metrics[other_cell]
        share = self.metrics[cell] / count if count else float("nan")
        return Share(share, int(count))


def losses(y: Labels, model: Scored, loss: Metric = "rmse") -> Scores:
    """Return each row's loss: its squared error, or for classes -log(probability of the true class).

    loss: for a regression "mae" gives the absolute errors.
    """
    if model.task == "regression":
        errors = y - model.scores
        return np.abs(errors) if loss == "mae" else errors**2
    clipped = np.clip(model.scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    if model.task == "multiclass":
        return -np.log(clipped[np.arange(len(y)), y.astype(np.int64)])
    return -np.where(y == 1, np.log(clipped), np.log1p(-clipped))


def predict(p: Scores, threshold: float | None) -> Labels:
    """Return the predictions: classes (the position of one of many), or numbers."""
    answers = rounded(p, threshold)
    if answers.ndim > 1:
        positions: NDArray[np.int64] = answers.argmax(axis=1)
        return positions
    return answers if threshold is None else (answers >= threshold).astype(np.int64)


def cost(costs: Costs, tp: Any, fp: Any, fn: Any) -> Any:
    """Return the cost of acting on the predicted 1s, and of the losses that remain."""
    return costs.action * (tp + fp) + costs.loss * (fn + (1 - costs.averted) * tp)


def best_constant(y: Labels, model: Scored, costs: Costs | None) -> dict[str, float]:
    """Return each metric of the constant answer that is best at it on these rows.

    For classes the constants are their shares, and each class for certain: always 1 has the best
    recall. For a regression they are mean and median.

    Args:
        y: Labels of the rows.
        model: Any model of the same task.
        costs: Costs of the spec.

    """
    constants: list[Any] = [np.mean(y), 0.0, 1.0]
    if model.task == "regression":
        constants = [np.mean(y), np.median(y)]
    elif model.task == "multiclass":
        one_hot = np.eye(model.scores.shape[1])
        shares = one_hot[y.astype(np.int64)].mean(axis=0)
        constants = [shares, *one_hot]
    threshold = None if model.threshold is None else 0.5
    candidates = []
    for constant in constants:
        scores = np.broadcast_to(constant, model.scores.shape)
        candidates.append(all_metrics(y, Scored(scores, threshold), costs))
    metrics = {}
    for name, values in pd.DataFrame(candidates).items():
        if name not in CELLS:
            best = values.min() if name in LOWER_IS_BETTER else values.max()
            metrics[str(name)] = float(best)
    return metrics


def all_metrics(
    y: Labels, model: Scored, costs: Costs | None, weights: Scores | None = None
) -> dict[str, float]:
    """Return every metric of the task; nan where one is undefined.

    Two classes also have the confusion matrix (tn, fp, fn, tp), and the cost if there are costs. For
    many classes Brier is summed over them; precision, recall and F1 are macro-averaged.

    Args:
        y: Labels.
        model: Scores of the same rows.
        costs: Costs of the spec.
        weights: How often each row counts; default: once.

    """
    weights = np.ones(len(y)) if weights is None else weights
    if model.task == "regression":
        return _metrics_of_numbers(y, model.scores, weights)
    metrics = _metrics_of_classes(y, model, weights)
    if model.task == "classification":
        metrics |= _metrics_of_ranking(y, model.scores, weights)
        if costs:
            total = cost(costs, metrics["tp"], metrics["fp"], metrics["fn"])
            metrics["cost"] = float(total / weights.sum())
    return metrics


def _metrics_of_numbers(y: Labels, p: Scores, weights: Scores) -> dict[str, float]:
    r2 = np.nan
    if _differ(y, weights):
        r2 = r2_score(y, p, sample_weight=weights)
    return {
        "rmse": root_mean_squared_error(y, p, sample_weight=weights),
        "mae": mean_absolute_error(y, p, sample_weight=weights),
        "r2": r2,
    }


def _metrics_of_classes(y: Labels, model: Scored, weights: Scores) -> dict[str, float]:
    """Measure answers by their confusion matrix: a few weighted cells in place of N rows."""
    labels = y.astype(np.int64)
    is_binary = model.task == "classification"
    class_count = 2 if is_binary else model.scores.shape[1]
    squared_errors = (
        (model.scores - labels) ** 2
        if is_binary
        else np.sum((model.scores - np.eye(class_count)[labels]) ** 2, axis=1)
    )
    cells = class_count * labels + model.predictions
    counts = np.bincount(cells, weights=weights, minlength=class_count**2)
    matrix = counts.reshape(class_count, class_count).astype(float)
    hits = matrix.diagonal()
    actual = matrix.sum(axis=1)
    predicted = matrix.sum(axis=0)
    # Macro-averages leave absent classes out.
    averaged = np.array([False, True]) if is_binary else actual + predicted > 0
    metrics = {
        "log_loss": np.average(losses(y, model), weights=weights),
        "brier": np.average(squared_errors, weights=weights),
        "accuracy": hits.sum() / weights.sum(),
        "precision": _shares(hits, predicted)[averaged].mean(),
        "recall": _shares(hits, actual)[averaged].mean(),
        "f1": _shares(2 * hits, actual + predicted)[averaged].mean(),
    }
    return metrics | dict(zip(CELLS, counts, strict=True)) if is_binary else metrics


def _shares(parts: Scores, totals: Scores) -> Scores:
    """Return parts / totals; 0 where a total is 0."""
    return np.divide(parts, totals, out=np.zeros(len(parts)), where=totals > 0)


def _metrics_of_ranking(y: Labels, p: Scores, weights: Scores) -> dict[str, float]:
    if not _differ(y, weights):
        return {"auc": np.nan, "average_precision": np.nan}
    _, false_alarms, _, hits, _ = confusion_matrix_at_thresholds(
        y, p, sample_weight=weights
    )
    recall = np.append(0, hits / hits[-1])
    fall_out = np.append(0, false_alarms / false_alarms[-1])
    precision = _shares(hits, hits + false_alarms)
    return {
        "auc": np.trapezoid(recall, fall_out),
        "average_precision": np.diff(recall) @ precision,
    }


def _differ(y: Labels, weights: Scores) -> bool:
    """Return whether the rows with a weight have two labels."""
    counted = y[weights > 0]
    return bool(counted.min() < counted.max())


def resampled(
    y: Labels,
    models: Mapping[str, Scored],
    costs: Costs | None,
    seed: int,
    count: int = 200,
) -> dict[str, pd.DataFrame]:
    """Return for each model its metrics, by name, in bootstrap resamples of the rows.

    All models are measured on the same `count` resamples, so that their differences are paired.
    """
    row_count = len(y)
    samples = {}
    for name, model in models.items():
        random = np.random.default_rng(seed)  # the same resamples for each model
        # Scores that are in order are sorted again sooner.
        order = np.argsort(model.top)
        sorted_labels = y[order]
        sorted_model = model.of(order)
        draws = []
        for _ in range(count):
            rows = random.integers(0, row_count, row_count)
            weights = np.bincount(rows, minlength=row_count).astype(float)
            draws.append(
                all_metrics(sorted_labels, sorted_model, costs, weights[order])
            )
        samples[name] = pd.DataFrame(draws)
    return samples


def interval(value: float, samples: pd.Series[float] | Scores) -> Interval:
    """Return the percentile interval; resamples where the metric is undefined do not count."""
    if np.isnan(samples).all():
        return Interval(value, np.nan, np.nan)
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def top_class(y: Labels, model: Scored) -> tuple[Labels, Scores]:
    """Return the labels and scores that calibration compares.

    For many classes they are whether the prediction is right, and its probability.
    """
    if model.task != "multiclass":
        return y, model.scores
    return (model.predictions == y).astype(np.int64), model.top


def by_segment(
    column: pd.Series[str], y: Labels, model: Scored, costs: Costs | None
) -> tuple[Segment, ...]:
    """Measure every value of `column` (one per row; null is a value), in order."""
    segments = []
    column = column.fillna(MISSING)
    for value in sorted(set(column)):
        rows = (column == value).to_numpy()
        scored = model.of(rows)
        segment = Segment(
            value=value,
            rows=int(rows.sum()),
            prevalence=float(y[rows].mean()),
            selected=float(scored.predictions.mean()),
            metrics=all_metrics(y[rows], scored, costs),
            column=str(column.name or ""),
        )
        segments.append(segment)
    return tuple(segments)


def fairness(segments: Sequence[Segment]) -> dict[str, float]:
    """Return gaps between the largest and the smallest share over segments; {} for none.

    Of several columns the one with the largest gap counts.

    demographic_parity_difference: gap of the share predicted 1. equal_opportunity_difference: gap of
    this share among the true 1s. largest_gap: the larger of the gaps among the true 1s, among the
    true 0s (equalised odds) and among all rows.
    """
    largest: dict[str, float] = {}
    for column in {segment.column for segment in segments}:
        of_column = [segment for segment in segments if segment.column == column]
        for name, kinds in GAPS.items():
            gap = max(_gap(of_column, kind) for kind in kinds)
            largest[name] = max(gap, largest.get(name, 0.0))
    return largest


def _gap(segments: Sequence[Segment], kind: str) -> float:
    """Return the gap of a share between segments; a segment without such rows does not count."""
    shares = [segment.shares[kind] for segment in segments]
    values = [share.value for share in shares if share.rows]
    return float(max(values) - min(values)) if values else 0.0


def calibration(y: Labels, p: Scores) -> float:
    """Return the expected calibration error.

    It is the mean of |mean label - mean score|, weighted by their rows, over up to ten bins of
    about equal size. Equal scores lie in one bin.
    """
    quantiles = np.arange(1, BINS) / BINS
    edges = np.unique(np.quantile(p, quantiles, method="inverted_cdf"))
    sums_of_differences = np.bincount(np.searchsorted(edges, p), y - p)
    return float(np.abs(sums_of_differences).sum() / len(y))

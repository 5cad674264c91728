"""Performance of a version on outcomes known by now, compared with its evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan, sqrt

import numpy as np

from core.spec import ModelSpec
from core.spec.monitoring import MetricLimit
from core.spec.training import LOWER_IS_BETTER
from monitoring.log.outcomes import Outcomes
from training.evaluation.metrics import (
    CELLS,
    Labels,
    Scored,
    all_metrics,
    calibration,
    resampled,
    top_class,
)

PERFORMANCE = "performance_drift"
"""Kind of a metric of the whole version."""
SAMPLE_ROWS = 20_000
"""Number of rows that are resampled. The error of more rows is scaled from theirs."""
ERROR_RESAMPLES = 100
"""Bootstrap resamples, which give a standard error to about 7 %."""
SURELY = 3.0
"""Standard errors by which a metric must be worse. Chance then makes one of four metrics worse in
less than 1 of 100 runs (docs/monitoring.md)."""
NORMAL = 1.96
"""Standard errors of a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class MeasuredMetric:
    """A metric on outcomes known by now.

    Attributes:
        name: Name of the figure, such as `online/f1`.
        metric: Name of the metric, such as `f1`.
        kind: PERFORMANCE, or another kind of check.
        value: Value of the metric.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        limit: The value from which the metric is bad; None: it is only shown.
        lower_is_better: Whether a lower value of the metric is better.
        rows: Number of rows of the measurement.
        words: Value and comparison in one sentence.

    """

    name: str
    metric: str
    kind: str = PERFORMANCE
    value: float
    low: float = nan
    high: float = nan
    limit: float | None = None
    lower_is_better: bool = True
    rows: int
    words: str

    @property
    def is_bad(self) -> bool:
        """Whether the value is beyond the limit."""
        if self.limit is None:
            return False
        if self.lower_is_better:
            return self.value > self.limit
        return self.value < self.limit


@dataclass(frozen=True)
class Judged:
    """Outcomes with the metrics of the version on them."""

    outcomes: Outcomes
    metrics: Sequence[MeasuredMetric]


def measure(
    spec: ModelSpec, outcomes: Outcomes, evaluated: Mapping[str, float]
) -> Iterator[MeasuredMetric]:
    """Measure every metric with its interval and its limit.

    A metric is bad if it is worse than at evaluation by its limit and by three standard errors of
    the bootstrap. It is also bad beyond `at_least` or `at_most`.

    Args:
        spec: Spec of the model.
        outcomes: Known outcomes with the version's scores.
        evaluated: The version's metrics at its evaluation.

    """
    y = outcomes.labels
    values = all_metrics(y, outcomes.scored, spec.costs)
    errors = _standard_errors(y, outcomes.scored, spec)
    limits = {str(name): limit for name, limit in spec.monitoring.metrics.items()}
    for metric, value in values.items():
        if metric in CELLS or not isfinite(value):
            continue
        old_value = evaluated.get(metric, nan)
        low = value - NORMAL * errors[metric]
        high = value + NORMAL * errors[metric]
        yield MeasuredMetric(
            name=f"{outcomes.kind}/{metric}",
            metric=metric,
            value=value,
            low=low,
            high=high,
            limit=bad_from(metric, limits.get(metric), old_value, errors[metric]),
            lower_is_better=metric in LOWER_IS_BETTER,
            rows=len(y),
            words=f"{metric} {value:.3f} [{low:.3f}, {high:.3f}] ({outcomes.about}), "
            f"was {old_value:.3f}",
        )
    yield from _shown_figures(outcomes, values)


def bad_from(
    metric: str, limit: MetricLimit | None, old_value: float, error: float
) -> float | None:
    """Return the value from which a metric is bad; None where nothing limits it.

    Args:
        metric: Name of the metric.
        limit: Limit of the metric in the spec; None: the metric is not judged.
        old_value: Value at evaluation; nan if there is none.
        error: Standard error of the value now.

    """
    if limit is None:
        return None
    is_low_good = metric in LOWER_IS_BETTER
    absolute = limit.at_most if is_low_good else limit.at_least
    if isnan(old_value) or (absolute is not None and not limit.is_relative):
        return absolute
    allowed = (limit.worse or 0) + (limit.worse_share or 0) * abs(old_value)
    change = max(allowed, SURELY * error)
    relative = old_value + change if is_low_good else old_value - change
    if absolute is None:
        return relative
    return min(relative, absolute) if is_low_good else max(relative, absolute)


def _shown_figures(
    outcomes: Outcomes, values: Mapping[str, float]
) -> Iterator[MeasuredMetric]:
    """Measure the calibration error, and the shares of actual and predicted positives."""
    figures: dict[str, float] = {}
    row_count = len(outcomes.labels)
    if outcomes.scored.task != "regression":
        tops = top_class(outcomes.labels, outcomes.scored)
        figures["ece"] = calibration(*tops)
    if outcomes.scored.task == "classification":
        figures["label_rate"] = (values["tp"] + values["fn"]) / row_count
        figures["positive_rate"] = (values["tp"] + values["fp"]) / row_count
    for name, value in figures.items():
        yield MeasuredMetric(
            name=f"{outcomes.kind}/{name}",
            metric=name,
            value=value,
            rows=row_count,
            words=f"{name} {value:.3f} ({outcomes.about})",
        )


def _standard_errors(y: Labels, scored: Scored, spec: ModelSpec) -> dict[str, float]:
    """Return the standard error of each metric, from bootstrap resamples of a sample."""
    row_count = len(y)
    sample_count = min(row_count, SAMPLE_ROWS)
    random = np.random.default_rng(spec.seed)
    sample = random.permutation(row_count)[:sample_count]
    models = {"version": scored.of(sample)}
    draws = resampled(y[sample], models, spec.costs, spec.seed, count=ERROR_RESAMPLES)
    scale = sqrt(sample_count / row_count)
    return {
        str(metric): float(np.nanstd(values)) * scale
        for metric, values in draws["version"].items()
    }

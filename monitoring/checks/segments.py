"""Bias in production: what a version says of each segment, and how far segments lie apart.

A segment is a value of a column of the spec's `segment`, with at least `fewest` rows. A window has
the features; a column of `audit` is in rows of matured snapshots alone.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from core.spec import MISSING, ModelSpec
from monitoring.checks.performance import MeasuredMetric
from monitoring.outcomes import Outcomes
from training.metrics import PARITY, Segment, by_segment, fairness, predict
from training.psi import SCORE
from training.reference import Reference

BIAS = "bias"
"""The kind of these figures."""
MOST_SEGMENTS = 20
"""Of a column; the largest are measured."""
SHOWN = ("f1", "r2")
"""Metrics of a segment, those that the task has, beside the one that estimators are chosen by."""


def segments_of_window(
    spec: ModelSpec, window: pd.DataFrame, reference: Reference
) -> Iterator[MeasuredMetric]:
    """Measure the share predicted 1, of numbers the mean prediction, beside the reference's.

    Args:
        spec: The model. Of many classes nothing is measured.
        window: The last prediction of each entity.
        reference: What the version was evaluated on.

    """
    if spec.task == "multiclass":
        return
    figure = "positive_rate" if spec.task == "classification" else "mean_prediction"
    for name in spec.segment:
        if name not in window:
            continue
        rates: dict[str, float] = {}
        for value, rows in _largest(spec, window[name]):
            rates[value] = _mean_answer(window[rows], reference)
            evaluated = reference.rows[reference.rows[name].fillna(MISSING) == value]
            old_rate = _mean_answer(evaluated, reference)
            yield MeasuredMetric(
                name=f"{figure}/{name}={value}",
                metric=figure,
                kind=BIAS,
                value=rates[value],
                rows=int(rows.sum()),
                words=f"{figure} {rates[value]:.3f} of a segment of {name}, {old_rate:.3f} in "
                "the reference",
            )
        if spec.task == "classification" and len(rates) > 1:
            gap = max(rates.values()) - min(rates.values())
            yield _gap(spec, f"{PARITY}/{name}", PARITY, gap, len(window))


def segments_of_outcomes(
    spec: ModelSpec, outcomes: Outcomes
) -> Iterator[MeasuredMetric]:
    """Measure performance on outcomes known by now, and the gaps of fairness."""
    for name in spec.segment:
        if name not in outcomes.rows.column_names:
            continue
        column = outcomes.rows[name].cast("string").to_pandas()
        parts = [rows for _, rows in _largest(spec, column)]
        if not parts:
            continue
        chosen = np.logical_or.reduce(parts)
        segments = by_segment(
            column[chosen].rename(name),
            outcomes.labels[chosen],
            outcomes.scored.of(chosen),
            spec.costs,
        )
        for segment in segments:
            yield from _performance(spec, outcomes, segment)
        if spec.task == "classification" and len(segments) > 1:
            for metric, gap in fairness(segments).items():
                figure = f"{outcomes.kind}/{metric}/{name}"
                yield _gap(spec, figure, metric, gap, int(chosen.sum()))


def _largest(
    spec: ModelSpec, column: pd.Series
) -> Iterator[tuple[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]]:
    """Yield each segment with enough rows, the largest first, and which rows are its."""
    values = column.fillna(MISSING).astype(str)
    counts = values.value_counts()
    for value in counts[counts >= spec.monitoring.fewest].index[:MOST_SEGMENTS]:
        yield str(value), (values == value).to_numpy()


def _mean_answer(rows: pd.DataFrame, reference: Reference) -> float:
    scores = rows[SCORE].to_numpy()
    answers = predict(scores, reference.threshold)
    return float(answers.mean()) if len(rows) else float("nan")


def _performance(
    spec: ModelSpec, outcomes: Outcomes, segment: Segment
) -> Iterator[MeasuredMetric]:
    for metric in dict.fromkeys([str(spec.loss), *SHOWN]):
        value = segment.metrics.get(metric, float("nan"))
        if np.isfinite(value):
            yield MeasuredMetric(
                name=f"{outcomes.kind}/{metric}/{segment.column}={segment.value}",
                metric=metric,
                kind=BIAS,
                value=value,
                rows=segment.rows,
                words=f"{metric} {value:.3f} of a segment of {segment.column} "
                f"({segment.rows:,} rows of {outcomes.about})",
            )


def _gap(
    spec: ModelSpec, name: str, metric: str, value: float, rows: int
) -> MeasuredMetric:
    limits = {str(key): limit for key, limit in spec.monitoring.bias.items()}
    limit = limits.get(metric)
    allowed = "shown alone" if limit is None else f"at most {limit:g} is allowed"
    return MeasuredMetric(
        name=name,
        metric=metric,
        kind=BIAS,
        value=value,
        limit=limit,
        rows=rows,
        words=f"{name.replace('_', ' ')}: segments lie {value:.3f} apart, {allowed}",
    )

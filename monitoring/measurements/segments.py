"""Bias in production: figures of each segment, and the gaps between segments.

A segment is a value of a column of the spec's `segment`, with at least `fewest` rows. A window has
features; a column of `audit` is only in rows of matured snapshots.
"""

import math
import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from core.spec import MISSING, ModelSpec
from monitoring.log.outcomes import Outcomes
from monitoring.measurements.performance import SURELY, MeasuredMetric
from training.evaluation.metrics import (
    GAPS,
    PARITY,
    Segment,
    Share,
    by_segment,
    predict,
)
from training.evaluation.psi import SCORE
from training.evaluation.reference import Reference

BIAS = "bias"
"""Kind of the figures."""
MOST_SEGMENTS = 20
"""Number of segments of a column that are measured: the largest."""
NOT_IN_A_SEGMENT = re.compile(r"[^\w .-]")
"""Characters that MLflow refuses in the name of a metric, and the slash, which makes a path of it."""
LONGEST_NAME = 60
"""Number of characters of a segment in the name of a figure."""
SHOWN = ("f1", "r2")
"""Metrics of a segment in addition to the spec's loss, if the task has them."""


def segments_of_window(
    spec: ModelSpec, window: pd.DataFrame, reference: Reference
) -> Iterator[MeasuredMetric]:
    """Measure the share of positive predictions, or the mean prediction of numbers.

    With more than two classes nothing is measured.

    Args:
        spec: Spec of the model.
        window: The last prediction of each entity.
        reference: Rows of the version's evaluation, for comparison.

    """
    if spec.task == "multiclass":
        return
    figure = "positive_rate" if spec.task == "classification" else "mean_prediction"
    for name in spec.segment:
        if name not in window:
            continue
        shares: list[Share] = []
        for value, rows in _largest(spec, window[name]):
            rate = _mean_answer(window[rows], reference)
            row_count = int(rows.sum())
            shares.append(Share(rate, row_count))
            evaluated = reference.rows[reference.rows[name].fillna(MISSING) == value]
            old_rate = _mean_answer(evaluated, reference)
            yield MeasuredMetric(
                name=f"{figure}/{name}={_in_a_name(value)}",
                metric=figure,
                kind=BIAS,
                value=rate,
                rows=row_count,
                words=f"{figure} {rate:.3f} of a segment of {name}, {old_rate:.3f} in "
                "the reference",
            )
        if spec.task == "classification":
            yield from _gap(spec, f"{PARITY}/{name}", PARITY, [shares])


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
        if spec.task == "classification":
            for metric, kinds in GAPS.items():
                groups = [_shares(segments, kind) for kind in kinds]
                figure = f"{outcomes.kind}/{metric}/{name}"
                yield from _gap(spec, figure, metric, groups)


def _largest(
    spec: ModelSpec, column: pd.Series
) -> Iterator[tuple[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]]:
    """Yield each segment with enough rows, the largest first, and a mask of its rows."""
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
                name=f"{outcomes.kind}/{metric}/{segment.column}="
                f"{_in_a_name(segment.value)}",
                metric=metric,
                kind=BIAS,
                value=value,
                rows=segment.rows,
                words=f"{metric} {value:.3f} of a segment of {segment.column} "
                f"({segment.rows:,} rows of {outcomes.about})",
            )


def _shares(segments: Sequence[Segment], kind: str) -> list[Share]:
    return [segment.shares[kind] for segment in segments]


def _in_a_name(value: str) -> str:
    """Return a segment as part of a figure's name. Different segments have different names."""
    name = NOT_IN_A_SEGMENT.sub("_", value)[:LONGEST_NAME]
    if name == value:
        return name
    return f"{name}-{zlib.crc32(value.encode()):08x}"


def _gap(
    spec: ModelSpec, name: str, metric: str, groups: Sequence[Sequence[Share]]
) -> Iterator[MeasuredMetric]:
    """Measure the largest difference between two shares of a group.

    Its limit is three standard errors above the spec's limit. Shares of fewer rows than `fewest` do
    not count. Nothing is measured if fewer than two shares of each group count.
    """
    gaps: list[tuple[float, float]] = []
    row_count = 0
    for group in groups:
        shares = [share for share in group if share.rows >= spec.monitoring.fewest]
        if len(shares) > 1:
            low = min(shares)
            high = max(shares)
            variances = [
                share.value * (1 - share.value) / share.rows for share in (low, high)
            ]
            gaps.append((high.value - low.value, math.sqrt(sum(variances))))
            row_count = max(row_count, sum(share.rows for share in shares))
    if not gaps:
        return
    gap, error = max(gaps)
    limits = {str(key): limit for key, limit in spec.monitoring.bias.items()}
    limit = limits.get(metric)
    allowed = "shown alone" if limit is None else f"at most {limit:g} is allowed"
    yield MeasuredMetric(
        name=name,
        metric=metric,
        kind=BIAS,
        value=gap,
        limit=None if limit is None else limit + SURELY * error,
        rows=row_count,
        words=f"{name.replace('_', ' ')}: segments lie {gap:.3f} apart, {allowed}",
    )

"""What pictures show of one monitoring run, measured on what it has read anyway."""

from collections.abc import Iterator
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from mlflow_server import window_details as shapes
from monitoring.checks.concept import segment_rates
from monitoring.checks.performance import Judged
from monitoring.checks.result import SCORE
from monitoring.run import MonitoringRun, Reference
from training.metrics import CELLS, Labels, Scores, best_constant, bins, top_class

BINS, SPAN = 20, (0.01, 0.99)
"""The bins begin and end at these quantiles: a few large numbers would take all the rest."""


def window_details(run: MonitoringRun, reference: Reference) -> shapes.WindowDetails:
    """Measure what pictures show; of a window too small to be judged the reference alone."""
    before, now, judged = reference.population, run.window.rows, run.judged
    now = now[: 0 if len(now) < run.spec.monitoring.fewest else None]
    outcomes = {each.performance.kind: (_labels(each), each.scored) for each in judged}
    if reference.said.task == "regression":
        outcomes = {}
    else:
        outcomes["reference"] = reference.y, reference.said
    return shapes.WindowDetails(
        scores=tuple(_score_bins(_finite(before[SCORE]), _finite(now[SCORE]))),
        quantiles=_quantiles(before, now),
        reference_quantiles=_quantiles(before, before),
        performance={
            x.performance.kind: dict(_metrics(run, x, reference)) for x in judged
        },
        calibration={
            kind: tuple(_calibration(*top_class(*o))) for kind, o in outcomes.items()
        },
        segments=segment_rates(run, reference),
    )


def _score_bins(before: Scores, now: Scores) -> Iterator[shapes.Bin]:
    if len(before) and len(now):
        ends = [np.quantile(scores, SPAN) for scores in (before, now)]
        low, high = float(np.min(ends)), float(np.max(ends))
        edges = np.histogram_bin_edges([], BINS, (low, high))
        within = (
            np.histogram(np.clip(each, low, high), edges)[0] for each in (before, now)
        )
        for *limits, was, rows in zip(edges, edges[1:], *within, strict=False):
            shares = was / len(before), rows / len(now)
            yield shapes.Bin(*map(_short, (*limits, *shares)))


def _quantiles(
    before: pd.DataFrame, rows: pd.DataFrame
) -> dict[str, tuple[float, ...]]:
    """Of what is a number in `before`; a column at a time, as there may be millions of rows."""
    names = (
        name for name in map(str, before) if pd.api.types.is_numeric_dtype(before[name])
    )
    columns = ((name, _finite(rows[name])) for name in names)
    of = shapes.QUANTILES
    return {
        name: tuple(map(_short, np.quantile(x, of))) for name, x in columns if len(x)
    }


def _metrics(
    run: MonitoringRun, judged: Judged, reference: Reference
) -> Iterator[tuple[str, shapes.MeasuredMetric]]:
    constant = best_constant(_labels(judged), judged.scored, run.spec.costs)
    for name, now in judged.performance.metrics.items():
        if name not in CELLS and isfinite(now):
            ends = judged.performance.intervals.get(name, (None, None))
            values = now, *ends, reference.evaluated.get(name), constant.get(name)
            yield name, shapes.MeasuredMetric(*map(_short, values))


def _calibration(y: Labels, p: Scores) -> Iterator[shapes.CalibrationBin]:
    for share, said, true in zip(*bins(y, p), strict=True):
        yield shapes.CalibrationBin(_short(said), _short(true), round(share * len(y)))


def _labels(judged: Judged) -> Any:
    return judged.rows["label"].to_numpy()


def _finite(column: "pd.Series[Any]") -> Scores:
    values: Scores = column.to_numpy(float)
    return values[np.isfinite(values)]


def _short(value: float | None) -> Any:
    """Five digits are more than a picture shows, and a year has 8,760 runs. nan: not known."""
    return None if value is None or not isfinite(value) else float(f"{value:.5g}")

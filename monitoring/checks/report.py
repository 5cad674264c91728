"""Evidently's report of a monitoring run. Its tests decide: nothing here computes a figure."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from core.spec.monitoring import Monitoring
from monitoring.check import CheckResult
from monitoring.measurements.performance import MeasuredMetric
from training.evaluation.psi import with_columns, with_nulls
from training.evaluation.reference import LABEL, Reference

log = logging.getLogger(__name__)
MOST_ROWS = 200_000
"""Rows of a sample of fixed seed, of the window as of the reference."""


def report_results(
    limits: Monitoring,
    reference: Reference,
    window: pd.DataFrame,
    metrics: Sequence[MeasuredMetric],
    folder: Path,
) -> list[CheckResult]:
    """Run Evidently's report and read what its tests say.

    A metric that raises is left out and is unknown.

    Args:
        limits: Of the spec.
        reference: What the window is compared with.
        window: The reference's columns but `label`, a row for each entity.
        metrics: Performance on matured rows.
        folder: Where `report.html` and `report.json` are written.

    """
    # Evidently takes 5 s to import, and may not be importable.
    from monitoring.checks.report_metrics import report_lines  # noqa: PLC0415
    from monitoring.checks.report_run import (  # noqa: PLC0415
        SEE_LOG,
        Samples,
        check_result,
        run_report,
    )

    reference_sample = _sample(reference.rows).drop(columns=LABEL)
    window_sample = _sample(window)[[*reference_sample]]
    sampled_reference = replace(reference, rows=reference_sample)
    samples = Samples(
        reference=reference_sample,
        window=window_sample,
        reference_rows=len(reference.rows),
        window_rows=len(window),
    )
    with warnings.catch_warnings():
        # Evidently's own, on libraries that it uses, and of means beyond the largest number.
        warnings.simplefilter("ignore")
        lines = report_lines(limits, sampled_reference, window_sample, metrics)
        snapshot, lines = run_report(lines, samples)
        results = [check_result(line, snapshot) for line in lines]
        try:
            snapshot.save_html(str(folder / "report.html"))
            snapshot.save_json(str(folder / "report.json"))
        except Exception as exc:
            log.exception("Evidently's report")
            problem = CheckResult(
                name="report",
                kind="report",
                status="alert",
                words=f"Evidently's report was not written: {type(exc).__name__}",
                remedy=SEE_LOG,
            )
            results.append(problem)
    return results


def _sample(rows: pd.DataFrame) -> pd.DataFrame:
    """Return at most so many rows, as they may be written into a page."""
    if len(rows) > MOST_ROWS:
        # A Generator, as a RandomState would draw them by shuffling all.
        rows = rows.sample(MOST_ROWS, random_state=np.random.default_rng(0))
    # Evidently puts categories into a script of its page as they are.
    texts = with_nulls(rows).select_dtypes("object").replace("<", "(", regex=True)
    return with_columns(rows, texts)

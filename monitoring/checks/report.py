"""Evidently's report of a monitoring run, whose tests decide."""

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
"""Rows of a sample with a fixed seed, of the window and of the reference."""


def report_results(
    limits: Monitoring,
    reference: Reference,
    window: pd.DataFrame,
    metrics: Sequence[MeasuredMetric],
    folder: Path,
) -> list[CheckResult]:
    """Run Evidently's report and return the results of its tests.

    A metric that raises an error is left out, and its result is unknown.

    Args:
        limits: Limits of the spec.
        reference: Reference of the version.
        window: Columns of the reference but `label`, a row for each entity.
        metrics: Measured metrics, which the report shows and judges.
        folder: Folder for `report.html` and `report.json`.

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
        # Evidently warns of libraries that it uses, and of means beyond the largest number.
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
    """Return at most MOST_ROWS rows, with texts that may be written into a page."""
    if len(rows) > MOST_ROWS:
        # A Generator: a RandomState would shuffle all rows.
        rows = rows.sample(MOST_ROWS, random_state=np.random.default_rng(0))
    # Evidently writes categories into a script of its page without escaping them.
    texts = with_nulls(rows).select_dtypes("object").replace("<", "(", regex=True)
    return with_columns(rows, texts)

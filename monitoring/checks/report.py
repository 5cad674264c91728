"""Evidently's report of a monitoring run, whose tests decide.

Importing this module imports Evidently, which takes 5 s.
"""

import json
import logging
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.core.metric_types import CountValue
from evidently.core.report import Snapshot
from evidently.legacy.tests.base_test import TestStatus
from evidently.metrics import RowCount

from core.spec.monitoring import Monitoring
from mlflow_server.api.pages import DISTRIBUTIONS, REPORT
from monitoring.check import CheckResult, Status
from monitoring.checks.report_metrics import GivenValue, ReportLine, report_lines
from monitoring.decisions.decision import ALERT_ONLY
from monitoring.measurements.performance import MeasuredMetric
from training.evaluation.psi import bin_shares, with_columns, with_nulls
from training.evaluation.reference import LABEL, Reference

log = logging.getLogger(__name__)
MOST_ROWS = 200_000
"""Rows of a sample with a fixed seed, of the window and of the reference."""
STATUSES: dict[TestStatus, Status] = {
    TestStatus.ERROR: "unknown",
    TestStatus.FAIL: "bad",
    TestStatus.WARNING: "note",
    TestStatus.SUCCESS: "ok",
}
"""Status by the state of a test, the worst first: the worst state of a metric's tests decides. A
test that is not critical warns."""
SEE_LOG = "See the log of the monitoring run."
REMEDIES = {
    "data_drift": "The report shows the change. If it is expected, as in a feature that grows "
    "with time, name the feature in [monitoring.monitor_only].",
    "prediction_drift": "The report shows which scores moved, and which features with them.",
    "missing": "Look at the newest rows of the source: who delivers them?",
    "new_categories": "If the categories are right, train on rows that have them.",
    "out_of_range": "If the unit is unchanged, train on rows that have such values.",
    "performance_drift": "Train on the newer outcomes.",
    "label_drift": "See whether performance has fallen. If the change is expected, or outcomes of "
    "one class are known first, name label_drift in [monitoring.monitor_only].",
    "bias": "Compare the segments in the report. A gate on the same figure refuses such a version.",
}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of reference and window, and the numbers of rows that they are drawn from."""

    reference: Reference
    window: pd.DataFrame
    reference_rows: int
    window_rows: int


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
        folder: Folder for `report.html`, `report.json` and the distributions.

    """
    reference_rows = _sample(reference.rows).drop(columns=LABEL)
    samples = Samples(
        reference=replace(reference, rows=reference_rows),
        window=_sample(window)[[*reference_rows]],
        reference_rows=len(reference.rows),
        window_rows=len(window),
    )
    with warnings.catch_warnings():
        # Evidently warns of libraries that it uses, and of means beyond the largest number.
        warnings.simplefilter("ignore")
        lines = report_lines(limits, samples.reference, samples.window, metrics)
        snapshot, lines = run_report(lines, samples)
        results = [check_result(line, snapshot) for line in lines]
        try:
            snapshot.save_html(str(folder / REPORT))
            snapshot.save_json(str(folder / "report.json"))
            distributions = {
                name: bin_shares(reference_rows[name], column)._asdict()
                for name, column in samples.window.items()
                if reference_rows[name].count() and column.count()
            }
            content = json.dumps(distributions, default=list)  # arrays
            (folder / DISTRIBUTIONS).write_text(content)
        except Exception as exc:
            log.exception("Evidently's report")
            results.append(
                CheckResult(
                    name="report",
                    kind="report",
                    status="alert",
                    words=f"Evidently's report was not written: {type(exc).__name__}",
                    remedy=SEE_LOG,
                )
            )
    return results


def run_report(
    lines: Sequence[ReportLine], samples: Samples
) -> tuple[Snapshot, list[ReportLine]]:
    """Run one report of all lines. If it ends with an error, run it without the metrics that raise.

    Returns:
        Evidently's snapshot, and the lines: a line that is not in the snapshot is unknown.

    """
    try:
        return _snapshot(lines, samples), [*lines]
    except Exception:
        log.warning("Evidently's report ended with an error", exc_info=True)
    tried = [_try(line, samples) for line in lines]
    return _snapshot([line for line in tried if not line.unknown], samples), tried


def check_result(line: ReportLine, snapshot: Snapshot) -> CheckResult:
    """Return the result of a line: figure, limit and status from the report and its tests."""
    named_result = CheckResult(name=line.name, kind=line.kind, feature=line.feature)
    if line.unknown:
        return replace(
            named_result,
            status="unknown" if line.figure else "note",
            words=line.unknown,
            remedy=SEE_LOG,
        )
    result = snapshot.metric_results[line.metric.metric_id]
    figure = result.share if isinstance(result, CountValue) else result
    value = float(figure.value)
    test_states = {test.status for test in result.tests}
    statuses = (STATUSES[state] for state in STATUSES if state in test_states)
    status: Status = next(statuses, "ok")
    if status == "bad" and line.kind in ALERT_ONLY:
        status = "alert"
    # The limit that failed, else the farthest.
    failed = [test for test in result.tests if test.status == TestStatus.FAIL]
    limit_tests = failed or result.tests[-1:]
    return replace(
        named_result,
        status=status,
        value=value if math.isfinite(value) else None,
        limit=limit_tests[0].test_config["threshold"] if limit_tests else None,
        words=line.words(value),
        remedy="" if status == "ok" else REMEDIES[line.kind],
    )


def _try(line: ReportLine, samples: Samples) -> ReportLine:
    """Report the line alone: the error of a report does not name the metric that raised it.

    Returns:
        The line; its figure without a drawing if Evidently raises; unknown if the figure raises.

    """
    try:
        _snapshot([line], samples)
    except Exception as exc:  # noqa: BLE001  (whatever a metric raises)
        if line.figure is not None:
            with suppress(Exception):
                title = f"{line.name}, which Evidently cannot draw"
                value = line.figure()
                metric = GivenValue(title=title, value=value, tests=line.tests)
                return replace(line, metric=metric)
        error = type(exc).__name__
        unknown = f"{line.feature}: Evidently cannot measure it: {error}"
        return replace(line, unknown=unknown)
    return line


def _snapshot(lines: Sequence[ReportLine], samples: Samples) -> Snapshot:
    window = samples.window
    texts = [name for name in window if not pd.api.types.is_numeric_dtype(window[name])]
    numbers = [name for name in window if name not in texts]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    report = Report(
        [
            GivenValue(title="Rows of the whole window", value=samples.window_rows),
            GivenValue(
                title="Rows of the whole reference", value=samples.reference_rows
            ),
            RowCount(tests=[]),
            *[line.metric for line in lines],
        ]
    )
    return report.run(
        current_data=Dataset.from_pandas(window, data_definition=definition),
        reference_data=Dataset.from_pandas(
            samples.reference.rows, data_definition=definition
        ),
    )


def _sample(rows: pd.DataFrame) -> pd.DataFrame:
    """Return at most MOST_ROWS rows, with texts that may be written into a page."""
    if len(rows) > MOST_ROWS:
        # A Generator: a RandomState would shuffle all rows.
        rows = rows.sample(MOST_ROWS, random_state=np.random.default_rng(0))
    # Evidently writes categories into a script of its page without escaping them.
    texts = with_nulls(rows).select_dtypes("object").replace("<", "(", regex=True)
    return with_columns(rows, texts)

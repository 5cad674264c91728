"""Checks of serving: failures, latency, refusals, collapsed scores, a better previous version.

A version that does harm is rolled back. An unknown figure is no harm.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import pandas as pd
from scipy.stats import ttest_rel

from core.spec import ModelSpec
from core.spec.monitoring import Monitoring
from core.spec.training import LOWER_IS_BETTER
from mlflow_server.roles import PRODUCTION
from monitoring.check import CheckResult, Status
from monitoring.harm import (
    HarmLimits,
    Variant,
    collapse,
    collapsed_classes,
    failure_harm,
    latency_harm,
    measure_variants,
)
from monitoring.log.outcomes import Outcomes
from monitoring.log.window import WINDOW_LENGTH
from monitoring.measurements.performance import PERFORMANCE
from monitoring.run import MonitoringRun
from monitoring.serving_status import ServingCounts
from training.evaluation.metrics import Scored, all_metrics, losses
from training.evaluation.psi import SCORE
from training.evaluation.reference import PREDICTED_CLASS, Reference
from training.model.scoring import version_scores

JUDGED_SPAN = timedelta(hours=1)
"""Time whose rows are judged, or the time since the promotion if that is shorter."""
FEWEST_SERVED = 100
"""Number of rows below which failures, and of requests below which latency is not judged."""
SLOWER = 3.0
"""Factor of the previous version's latency; the latency is longer by SLOWER_SECONDS, too."""
SLOWER_SECONDS = 0.02
REFUSED_REQUESTS = 100
"""Number of requests refused since the last run from which an alert goes out."""
BETTER_SIGNIFICANCE = 0.01
"""The largest p at which the previous version counts as better."""


def serving(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    """Compare failures and latency of the version in production with the previous version."""
    start = run.as_of - JUDGED_SPAN
    previous = Variant()
    promotion = run.past.promotion
    if promotion:
        start = max(start, promotion.time)
        # A day: large requests, which take longer, may come at certain hours alone.
        day_before = promotion.time - WINDOW_LENGTH
        before = measure_variants(run.settings, run.model, day_before, promotion.time)
        previous = before[PRODUCTION, run.past.previous or ""]
    measured = measure_variants(run.settings, run.model, start, run.as_of)
    current = measured[PRODUCTION, run.version]
    minutes = (run.as_of - start) / timedelta(minutes=1)
    gap = log_gap(run.serving, run.past.serving)
    yield from judge_serving(run.spec.monitoring, current, previous, minutes, gap)
    yield from judge_refusals(run.serving, run.past.serving)


def judge_serving(
    monitoring: Monitoring,
    current: Variant,
    previous: Variant,
    minutes: float,
    gap: str | None,
) -> Iterator[CheckResult]:
    """Judge failures by row and latency by request.

    Args:
        monitoring: Limits of the spec.
        current: Figures of the version in production.
        previous: Figures of the previous version.
        minutes: Length of the span of `current`.
        gap: Why the log may lack rows of the span.

    """
    limits = HarmLimits(
        failures=monitoring.failures,
        latency=SLOWER,
        latency_seconds=SLOWER_SECONDS,
        # Both: a few large requests slow down the tail alone.
        quantiles=("p50", "p95"),
        distance=None,
        fewest=FEWEST_SERVED,
    )
    share = current.failed_rows / current.rows if current.rows else None
    failures = failure_harm(current, previous, limits)
    yield _harm_result("serving/failures", share, failures, gap, monitoring.failures)
    for name, seconds in current.seconds.items():
        figure = f"serving/{name}_ms"
        if name == "p95":
            slowness = latency_harm(current, previous, limits)
            yield _harm_result(figure, seconds * 1000, slowness, gap)
        else:
            yield CheckResult(name=figure, kind="serving", value=seconds * 1000)
    yield CheckResult(
        name="serving/requests_per_minute",
        kind="serving",
        value=current.requests / max(minutes, 1),
    )


def log_gap(
    counts: Mapping[str, ServingCounts] | None,
    earlier: Mapping[str, ServingCounts] | None,
) -> str | None:
    """Return why the log may lack rows since the last run, by the counts of now and then."""
    if counts is None:
        return "serving does not answer: predictions missing from the log cannot be counted"
    new_counts = _new_counts(counts, earlier or {})
    if new_counts is None:
        return "serving restarted: its earlier count of predictions missing from the log is lost"
    if new_counts.not_logged:
        return f"{new_counts.not_logged} predictions could not be logged"
    return None


def collapsed_scores(
    run: MonitoringRun, reference: Reference | None
) -> Iterator[CheckResult]:
    """Judge whether the scores of the window are all alike, or all on one side."""
    rows = run.window.rows
    if len(rows) < run.spec.monitoring.fewest:
        return
    threshold = run.spec.threshold
    usual_rows = pd.DataFrame({SCORE: []})
    if reference:
        threshold = reference.threshold
        usual_rows = reference.rows
    problem = collapse(rows[SCORE], usual_rows[SCORE], len(rows), threshold)
    if not problem and PREDICTED_CLASS in rows and PREDICTED_CLASS in usual_rows:
        problem = collapsed_classes(rows[PREDICTED_CLASS], usual_rows[PREDICTED_CLASS])
    yield _harm_result("serving/collapsed", float(problem is not None), problem)


def previous_is_better(
    run: MonitoringRun, _reference: Reference
) -> Iterator[CheckResult]:
    """Compare with the previous version on matured rows on which the current version is bad.

    If both are bad, the data has changed: only a training helps.
    """
    previous = run.past.previous
    for judged in run.judged:
        outcomes = judged.outcomes
        bad_metrics = [
            metric.metric
            for metric in judged.metrics
            if metric.is_bad and metric.kind == PERFORMANCE
        ]
        if outcomes.kind != "backfilled" or not previous or not bad_metrics:
            continue
        other = version_scores(run.settings, run.spec, previous, outcomes.rows)
        better = surely_better(run.spec, outcomes, other, bad_metrics)
        problem = f"version {previous} is better on {outcomes.about}: {better}"
        yield _harm_result(
            "serving/previous_is_better",
            float(better is not None),
            problem if better else None,
        )


def surely_better(
    spec: ModelSpec, outcomes: Outcomes, other: Scored, metrics: Sequence[str]
) -> str | None:
    """Return how much better another version is by all metrics; None if it is not.

    By the loss of the spec its advantage must be significant, too.

    Args:
        spec: Spec of the model.
        outcomes: Known outcomes with the scores of the version in production.
        other: Scores of the other version for the same rows.
        metrics: Names of metrics.

    """
    y = outcomes.labels
    current = outcomes.scored
    test = ttest_rel(
        losses(y, other, spec.loss), losses(y, current, spec.loss), alternative="less"
    )
    if not test.pvalue < BETTER_SIGNIFICANCE:
        return None
    current_metrics = all_metrics(y, current, spec.costs)
    other_metrics = all_metrics(y, other, spec.costs)
    sentences = []
    for name in metrics:
        gain = other_metrics[name] - current_metrics[name]
        if name in LOWER_IS_BETTER:
            gain = -gain
        if not gain > 0:
            return None
        sentences.append(
            f"{name} {other_metrics[name]:.3f} beside {current_metrics[name]:.3f}"
        )
    return ", ".join(sentences)


def _harm_result(
    name: str,
    value: float | None,
    problem: str | None,
    gap: str | None = None,
    limit: float | None = None,
) -> CheckResult:
    """Return a result: unknown if the log has a gap, harmful if there is a problem."""
    if gap:
        return CheckResult(
            name=name,
            kind="serving",
            status="unknown",
            value=value,
            limit=limit,
            words=f"failures and latency are not known: {gap}",
            remedy="gyre status",
            incident="failures and latency are not known",
        )
    return CheckResult(
        name=name,
        kind="harm",
        status="harmful" if problem else "ok",
        value=value,
        limit=limit,
        words=problem or "",
    )


def judge_refusals(
    counts: Mapping[str, ServingCounts] | None,
    earlier: Mapping[str, ServingCounts] | None,
) -> Iterator[CheckResult]:
    """Count requests that serving refused since the last run."""
    new_counts = None if counts is None else _new_counts(counts, earlier or {})
    if new_counts is None:
        return
    refused = new_counts.refused
    status: Status = "note" if refused else "ok"
    if refused >= REFUSED_REQUESTS:
        status = "alert"
    yield CheckResult(
        name="serving/refused",
        kind="serving",
        status=status,
        value=refused,
        limit=REFUSED_REQUESTS,
        words=f"serving refused {refused} requests (429, 503)" if refused else "",
        remedy="gyre status" if refused else "",
        incident="serving refuses requests",
    )


def _new_counts(
    counts: Mapping[str, ServingCounts], earlier: Mapping[str, ServingCounts]
) -> ServingCounts | None:
    """Sum the counts of all replicas since the last run; None if one of them restarted."""
    none = ServingCounts(0, 0)
    not_logged = 0
    refused = 0
    for replica in counts.keys() | earlier.keys():
        now = counts.get(replica, none)
        then = earlier.get(replica, none)
        if now.not_logged < then.not_logged or now.refused < then.refused:
            return None
        not_logged += now.not_logged - then.not_logged
        refused += now.refused - then.refused
    return ServingCounts(not_logged, refused)

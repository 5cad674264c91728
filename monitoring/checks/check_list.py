"""The list of all checks of a monitoring run. A check is a function of run and reference.

Its name is the kind of its result where it ends with an error.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

from core.errors import GyreError
from monitoring.check import CheckResult
from monitoring.checks.online_store import online_store
from monitoring.checks.serving import collapsed_scores, previous_is_better, serving
from monitoring.checks.skew import skew
from monitoring.checks.team_views import team_views
from monitoring.checks.volume import entity_count, freshness, volume
from monitoring.decisions.decision import REFERENCE
from monitoring.measurements.performance import PERFORMANCE
from monitoring.measurements.segments import segments_of_window
from monitoring.run import MonitoringRun
from training.evaluation.reference import Reference

log = logging.getLogger(__name__)
Check = Callable[[Any, Any], Iterable[CheckResult]]
"""A function of a MonitoringRun and a Reference that returns results."""


def performance(run: MonitoringRun, _reference: Reference) -> Iterator[CheckResult]:
    """Return why a part of performance is not known; the report judges the known part."""
    for reason in run.unmeasured:
        yield CheckResult(
            name="performance",
            kind=PERFORMANCE,
            status="unknown",
            words=f"performance was not measured: {reason}",
        )
    is_known = any(judged.outcomes.differ for judged in run.judged)
    if not is_known and not run.unmeasured:
        yield CheckResult(
            name="performance",
            kind=PERFORMANCE,
            status="note",
            words="performance is not known yet: no snapshot has matured since the "
            "evaluation, and too few outcomes of predictions are known, or all are the same",
        )


def report(run: MonitoringRun, reference: Reference) -> Iterable[CheckResult]:
    """Let Evidently compare the window with the reference, and performance with its limits."""
    # Evidently takes 5 s to import, and may not be importable.
    from monitoring.checks.report import report_results  # noqa: PLC0415

    limits = run.spec.monitoring
    rows = run.window.rows
    if len(rows) < limits.fewest:  # then performance alone is judged
        rows = rows[:0]
    metrics = [metric for judged in run.judged for metric in judged.metrics]
    metrics += segments_of_window(run.spec, rows, reference)
    if rows.empty and not metrics:
        return []
    return report_results(limits, reference, rows, metrics, run.folder)


CHECKS: tuple[Check, ...] = (
    entity_count,
    volume,
    freshness,
    team_views,
    online_store,
    skew,
    serving,
    collapsed_scores,
)
"""Checks that need no reference: theirs may be None."""
COMPARISONS: tuple[Check, ...] = (report, performance, previous_is_better)


def run_checks(
    run: MonitoringRun,
    reference: Reference | str,
    checks: Sequence[Check] = CHECKS,
    comparisons: Sequence[Check] = COMPARISONS,
) -> list[CheckResult]:
    """Return the results of all checks. A check with an error is unknown, and the others still run.

    Args:
        run: The run.
        reference: Reference of the version, or why there is none.
        checks: Checks that need no reference.
        comparisons: Checks that need a reference.

    """
    limits = run.spec.monitoring
    results: list[CheckResult] = []
    known_reference = reference if isinstance(reference, Reference) else None
    chosen_checks: list[Check | str] = [*checks]
    if known_reference:
        chosen_checks += [*comparisons, *limits.checks]
    else:
        remedy = run.spec.command
        if run.spec.is_trained_here:
            remedy = f"{remedy} --force"
        results.append(
            CheckResult(
                name=REFERENCE,
                kind=REFERENCE,
                status="unknown",
                words=f"there is no reference: {reference}",
                remedy=remedy,
            )
        )
    for check in chosen_checks:
        results += _results(check, run, known_reference)
    named_results = name_performance(results, limits.monitor_only)
    return [_completed(result, run) for result in named_results]


def name_performance(
    results: Sequence[CheckResult], passive: Mapping[str, str]
) -> list[CheckResult]:
    """Rename a loss of performance to concept drift if no feature drifts.

    Args:
        results: Results of the checks.
        passive: Names that never act, such as a feature that always drifts, with the reasons.

    """
    has_drift = any(
        result.kind == "data_drift"
        and result.status == "bad"
        and _reason_of_passivity(result, passive) is None
        for result in results
    )
    if has_drift:
        return [*results]
    return [
        replace(result, kind="concept_drift")
        if result.kind == PERFORMANCE and result.status == "bad"
        else result
        for result in results
    ]


def _completed(result: CheckResult, run: MonitoringRun) -> CheckResult:
    """Add to a result its page, its incident, and why it does not act."""
    link = result.link or f"/status/{run.spec.name}?tab=checks"
    incident = result.incident
    if result.status in {"alert", "unknown"} and not incident:
        incident = f"{result.name} of version {run.version}: {result.status}"
    reason = _reason_of_passivity(result, run.spec.monitoring.monitor_only)
    return replace(
        result,
        link=link,
        incident=incident,
        acts=reason is None,
        reason=reason or "",
    )


def _reason_of_passivity(result: CheckResult, passive: Mapping[str, str]) -> str | None:
    """Return why a result never acts; None if it does."""
    for name in (result.feature, result.kind, result.name):
        if name in passive:
            return passive[name]
    return None


def _results(
    check: Check | str, run: MonitoringRun, reference: Reference | None
) -> list[CheckResult]:
    """Return the results of a check. A check of a team is an import path."""
    name = check if isinstance(check, str) else check.__name__
    try:
        function: Check = resolve_name(check) if isinstance(check, str) else check
        return [*function(run, reference)]
    except Exception as exc:
        log.exception("check %s", name)
        # The message of another library may quote a feature value.
        is_plain = isinstance(exc, GyreError | ImportError)
        reason = str(exc) if is_plain else type(exc).__name__
        return [
            CheckResult(
                name=name,
                kind=name,
                status="unknown",
                words=f"{name} was not measured: {reason}",
                remedy="the log of the monitoring run has the traceback",
            )
        ]

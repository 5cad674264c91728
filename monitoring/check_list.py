"""Every check of a monitoring run, and what they say: each is a function of run and reference."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

from core.errors import GyreError
from core.user_code import in_one_line
from monitoring.checks.concept import (
    calibration,
    concept_drift,
    label_rate,
    positive_rate,
)
from monitoring.checks.drift import drift
from monitoring.checks.guardrails import (
    collapsed_scores,
    failures,
    latency,
    previous_is_better,
)
from monitoring.checks.performance import performance
from monitoring.checks.result import CheckResult
from monitoring.checks.skew import skew
from monitoring.checks.volume import entities, freshness, volume
from monitoring.run import MonitoringRun, Reference

log = logging.getLogger(__name__)
Check = Callable[[Any, Any], Iterable[CheckResult]]
"""A MonitoringRun and its Reference → results."""
CHECKS: tuple[Check, ...] = (
    entities,
    volume,
    skew,
    freshness,
    failures,
    collapsed_scores,
    latency,
)
"""The reference may be None."""
COMPARISONS: tuple[Check, ...] = (
    performance,
    concept_drift,
    calibration,
    drift,
    positive_rate,
    label_rate,
    previous_is_better,
)


def run_checks(
    run: MonitoringRun,
    reference: Reference | str,
    checks: Sequence[Check] = CHECKS,
    comparisons: Sequence[Check] = COMPARISONS,
) -> list[CheckResult]:
    """Return what every check says; one that fails says why, and keeps no other from it.

    reference: or why there is none.
    """
    limits = run.spec.monitoring
    if isinstance(reference, str):
        text = f"no reference: {reference}"
        results = [CheckResult("reference", status="unknown", remark=text)]
        results += (result for check in checks for result in _results(check, run, None))
    else:
        every: tuple[Check | str, ...] = (*checks, *comparisons, *limits.checks)
        results = [
            result for check in every for result in _results(check, run, reference)
        ]
    return [
        replace(result, status="remark")
        if result.status == "bad" and result.kind in limits.monitor_only
        else result
        for result in results
    ]


def _results(
    check: Check | str, run: MonitoringRun, reference: Reference | None
) -> list[CheckResult]:
    """check: one of ours, or a team's own by its path, of which any error is a remark."""
    name = check if isinstance(check, str) else check.__name__
    expected = Exception if isinstance(check, str) else GyreError
    try:
        function: Check = resolve_name(check) if isinstance(check, str) else check
        results = [*function(run, reference)]
        figures = (
            None if each.value is None else float(each.value) for each in results
        )
        return [
            replace(each, value=f) for each, f in zip(results, figures, strict=True)
        ]
    except expected as exc:
        log.warning("check %s", name, exc_info=True)
        text = f"{name} was not measured: {in_one_line(exc)}"
        return [CheckResult(name, status="unknown", remark=text, kind=name)]

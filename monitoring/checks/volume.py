"""Volume and freshness: how many entities ask, how many are usual, and how old features are."""

from collections.abc import Iterator
from datetime import timedelta

from core.monitoring_spec import Monitoring
from feature_repo.dataset_record import service_records
from monitoring.checks.result import CheckResult
from monitoring.past import Past
from monitoring.run import MonitoringRun, Reference
from monitoring.window import LENGTH

ENTITIES, USUAL = "entities", "usual"
"""Figures: entities of the window, and how many are usual."""


def entities(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    """Say whether the window is large enough for a verdict."""
    rows, fewest = len(run.window.rows), run.spec.monitoring.fewest
    yield CheckResult(ENTITIES, rows, fewest, "ok" if rows >= fewest else "unknown")


def volume(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    limits, asked = run.spec.monitoring, float(len(run.window.rows))
    usual = usual_entities(limits, run.past)
    if usual is None:
        return
    yield CheckResult(USUAL, usual)
    if collapse(limits, asked, usual):
        incident = f"too few predictions of version {run.version}"
        remark = f"{incident}: {asked:.0f} entities in 24 hours, {usual:.0f} are usual"
        limit = limits.volume * usual
        yield CheckResult(
            "volume", asked, limit, "alert", remark, "volume", ENTITIES, incident
        )


def freshness(
    run: MonitoringRun, _reference: Reference | None
) -> Iterator[CheckResult]:
    """Say what is not materialised, too old, or silent at the source."""
    age_limit = timedelta(hours=run.spec.monitoring.freshness_hours)
    for record in service_records(
        run.settings, run.spec.dataset, run.spec.feature_service
    ):
        for incident, text in record.problems(run.as_of, age_limit):
            yield CheckResult(
                name=f"freshness: {incident}",
                status="alert",
                remark=text,
                kind="freshness",
                feature=record.dataset,
                incident=incident,
            )


def collapse(limits: Monitoring, asked: float, usual: float | None) -> bool:
    """Whether far fewer entities asked in a window than `usual`, as far as that is known."""
    return (
        usual is not None and usual >= limits.fewest and asked < limits.volume * usual
    )


def usual_entities(limits: Monitoring, past: Past) -> float | None:
    """Mean entity count of earlier windows that share no hour with this one; None below so few.

    While traffic has collapsed, the baseline from before the collapse stays.
    """
    for row in past.own[-1:]:
        if collapse(limits, row.figures[ENTITIES], row.figures.get(USUAL)):
            return row.figures[USUAL]
    before = [
        row.figures[ENTITIES] for row in past.own if row.as_of <= past.as_of - LENGTH
    ]
    return sum(before) / len(before) if len(before) >= limits.fewest_windows else None

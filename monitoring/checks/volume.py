"""Checks of volume and freshness: number of entities, usual number, age of features."""

from collections.abc import Iterator, Sequence

from feature_repo.published.service import service_of
from feature_repo.views import late_features
from monitoring.check import CheckResult
from monitoring.decisions.decision import ENTITIES
from monitoring.log.window import WINDOW_LENGTH
from monitoring.run import MonitoringRun
from training.evaluation.reference import Reference

COLLAPSED_SHARE = 0.5
"""Share of the usual number of entities below which an alert goes out."""
FEWEST_WINDOWS = 3
"""Number of earlier windows from which the usual number is known."""


def entity_count(
    run: MonitoringRun, _reference: Reference | None
) -> Iterator[CheckResult]:
    """Count the entities of the window: a verdict needs enough of them."""
    count = len(run.window.rows)
    fewest = run.spec.monitoring.fewest
    yield CheckResult(
        name=ENTITIES,
        kind="volume",
        status="ok" if count >= fewest else "note",
        value=count,
        limit=fewest,
        words=f"{count:,} entities in 24 hours, a verdict needs {fewest:,}",
    )


def volume(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    """Alert of far fewer entities than usual."""
    until = run.as_of - WINDOW_LENGTH  # windows that do not overlap with this one
    earlier = [row.entities for row in run.past.decisions if row.as_of <= until]
    usual = usual_entities(earlier)
    if usual is None:
        return
    count = len(run.window.rows)
    has_collapsed = (
        usual >= run.spec.monitoring.fewest and count < COLLAPSED_SHARE * usual
    )
    yield CheckResult(
        name="volume/usual",
        kind="volume",
        status="alert" if has_collapsed else "ok",
        value=usual,
        words=f"{count:,} entities in 24 hours, {usual:,.0f} are usual",
        remedy="Ask who calls the model; gyre status says whether serving answers"
        if has_collapsed
        else "",
        incident=f"too few predictions of version {run.version}",
    )


def freshness(
    run: MonitoringRun, _reference: Reference | None
) -> Iterator[CheckResult]:
    """Alert of features that are not materialised, too old, or silent at the source."""
    service = service_of(run.settings, run.spec)
    problems = late_features(
        settings=run.settings,
        service=service,
        datasets=run.spec.datasets,
        as_of=run.as_of,
        age_limit=run.spec.monitoring.feature_age_limit,
    )
    for problem in problems:
        yield CheckResult(
            name=f"freshness/{problem.name}",
            kind="freshness",
            status="alert",
            words=problem.words,
            remedy=problem.remedy,
            link=problem.link,
            feature=problem.name,
            incident=problem.incident,
        )


def usual_entities(counts: Sequence[int]) -> float | None:
    """Return the mean number of entities in windows; None if too few windows are known.

    Windows with a collapsed number do not count.
    """
    if len(counts) < FEWEST_WINDOWS:
        return None
    usual = sum(counts) / len(counts)
    normal = [count for count in counts if count >= COLLAPSED_SHARE * usual]
    return sum(normal) / len(normal)

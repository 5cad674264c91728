"""Whether one version does harm beside another: it fails, is slow, or its scores are odd.

Failures are of rows, latency is of requests: a request may have one row or thousands.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import ks_2samp

from core.settings import Settings
from core.spec.monitoring import Rollout
from mlflow_server.roles import RoleAssignment
from monitoring.log.tables import query_log

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
"""Of the seconds of requests."""
PERCENTILES = [number / 100 for number in range(101)]
COLLAPSE_CHANCE = 0.001
"""Scores that are all alike are harm where the usual scores make that less likely."""
DISTANCE_BY_CHANCE = 1.63
"""Of the two-sample Kolmogorov-Smirnov distance at 1 % (Smirnov 1948, Ann. Math. Statist. 19)."""
JITTER_SECONDS = 0.005
"""What does not count as slower in a rollout, whatever the ratio."""
IS_SCORED = "error IS NULL AND in_population"
MEASURE = f"""
SELECT role, version, count(*) AS rows, count(error) AS failed_rows,
  count(seconds) AS requests, quantile_disc(seconds, {[*QUANTILES.values()]}) AS seconds,
  count(*) FILTER ({IS_SCORED}) AS scored_rows,
  quantile_disc(coalesce(probability, prediction), {PERCENTILES}) FILTER ({IS_SCORED}) AS scores
FROM logged GROUP BY role, version"""  # noqa: S608  (ours)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one version did in one role within a span, as the log has it.

    Attributes:
        rows: Rows that it was asked for.
        failed_rows: Rows of these that it failed.
        requests: Requests whose time is known.
        seconds: Their times, by name of QUANTILES; empty where there is no request.
        scored_rows: Rows of the label's population that it answered.
        scores: Percentiles 0 to 100 of their scores; empty where there is no such row.

    """

    rows: int = 0
    failed_rows: int = 0
    requests: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    scored_rows: int = 0
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HarmLimits:
    """Beyond what a version does harm beside another.

    Attributes:
        failures: Share of rows, above the other's.
        latency: Times the other's seconds.
        latency_seconds: Seconds more than the other's.
        quantiles: Names of QUANTILES; all of them must be slower.
        distance: Between the scores of both, by Kolmogorov-Smirnov; None: they are not compared.
        fewest: Rows or requests of each below which nothing is said.

    """

    failures: float
    latency: float
    latency_seconds: float
    quantiles: tuple[str, ...]
    distance: float | None
    fewest: int


def rollout_limits(policy: Rollout) -> HarmLimits:
    """Return the limits of a challenger beside production, which answers the same traffic."""
    return HarmLimits(
        failures=policy.errors,
        latency=policy.latency,
        latency_seconds=JITTER_SECONDS,
        quantiles=("p95",),
        distance=policy.scores,
        fewest=policy.requests,
    )


def measure_variants(
    settings: Settings, model: RoleAssignment, since: datetime, until: datetime
) -> defaultdict[tuple[str, str], Variant]:
    """Measure by role and version what was logged in a span, which may be nothing.

    Args:
        settings: Of the installation.
        model: The model.
        since: Start of the span, which is not in it.
        until: End of the span.

    """
    variants: defaultdict[tuple[str, str], Variant] = defaultdict(Variant)
    with query_log(settings, model, since, until) as connection:
        for measured in connection.execute(MEASURE).to_arrow_table().to_pylist():
            key = (measured.pop("role"), measured.pop("version"))
            seconds = measured["seconds"] or ()
            measured["seconds"] = dict(zip(QUANTILES, seconds, strict=False))
            measured["scores"] = tuple(measured["scores"] or ())
            variants[key] = Variant(**measured)
    return variants


def harm(variant: Variant, other: Variant, limits: HarmLimits) -> str | None:
    """Say what harm a version does compared with production, if it does any.

    Args:
        variant: What the version did.
        other: What production did.
        limits: What is allowed.

    """
    return (
        failure_harm(variant, other, limits)
        or latency_harm(variant, other, limits)
        or score_harm(variant, other, limits)
    )


def failure_harm(variant: Variant, other: Variant, limits: HarmLimits) -> str | None:
    """Say how many rows failed, if too many did for any further row to mend it."""
    usual_share = other.failed_rows / max(other.rows, limits.fewest)
    allowed = usual_share + limits.failures
    if variant.failed_rows <= allowed * max(variant.rows, limits.fewest):
        return None
    return (
        f"{variant.failed_rows} of {variant.rows} predictions failed, "
        f"at most {allowed:.1%} is allowed"
    )


def latency_harm(variant: Variant, other: Variant, limits: HarmLimits) -> str | None:
    """Say by how much requests take longer, if they do."""
    if min(variant.requests, other.requests) < limits.fewest:
        return None
    sentences = []
    for name in limits.quantiles:
        seconds = variant.seconds[name]
        usual = other.seconds[name]
        allowed = max(limits.latency * usual, usual + limits.latency_seconds)
        if seconds <= allowed:
            return None
        sentences.append(
            f"{100 * QUANTILES[name]:.0f} % of requests within {milliseconds(seconds)}, "
            f"at most {milliseconds(allowed)} is allowed"
        )
    return f"predictions are slow: {'; '.join(sentences)}"


def score_harm(variant: Variant, other: Variant, limits: HarmLimits) -> str | None:
    """Say whether scores have collapsed, or lie surely too far from those of production."""
    if min(variant.scored_rows, other.scored_rows) < limits.fewest:
        return None
    problem = collapse(variant.scores, other.scores, variant.scored_rows)
    if problem or limits.distance is None:
        return problem
    score_distance = distance(variant.scores, other.scores)
    chance = DISTANCE_BY_CHANCE * sqrt(1 / variant.scored_rows + 1 / other.scored_rows)
    if score_distance - chance <= limits.distance:
        return None
    return (
        f"its scores are {score_distance:.2f} from those of production, "
        f"{limits.distance:g} is allowed"
    )


def collapse(
    scores: ArrayLike,
    usual_scores: ArrayLike,
    row_count: int,
    threshold: float | None = None,
) -> str | None:
    """Say whether scores are all one, or all on one side of a threshold, unlike the usual ones.

    Args:
        scores: At least one score.
        usual_scores: Scores to compare with; none where nothing is usual.
        row_count: How many rows the scores are of.
        threshold: None where scores have no sides, as of numbers.

    """
    values = np.asarray(scores)
    usual_values = np.asarray(usual_scores)
    lowest = values.min()
    if lowest == values.max():
        share = np.mean(usual_values == lowest) if len(usual_values) else 0.0
        # A model that has only one score is broken, also where that is usual.
        if share == 1 or share**row_count < COLLAPSE_CHANCE:
            return f"every one of {row_count} scores is {lowest:.6g}"
    if threshold is None or not len(usual_values):
        return None
    return collapsed_classes(
        np.where(values >= threshold, "positive", "negative"),
        np.where(usual_values >= threshold, "positive", "negative"),
    )


def collapsed_classes(classes: ArrayLike, usual_classes: ArrayLike) -> str | None:
    """Say whether one class alone is predicted, unlike usually."""
    names = np.asarray(classes)
    share = np.mean(np.asarray(usual_classes) == names[0])
    if (names != names[0]).any() or share ** len(names) >= COLLAPSE_CHANCE:
        return None
    return f"every one of {len(names)} predictions is {names[0]}"


def distance(scores: Sequence[float], other_scores: Sequence[float]) -> float:
    """Return the largest difference between the shares below any one score, to a hundredth."""
    return float(ks_2samp(scores, other_scores, method="asymp").statistic)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"

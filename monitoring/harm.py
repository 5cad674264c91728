"""Harm that one version does compared with another: failures, latency, odd scores.

Failures are counted in rows and latency in requests: a request may have one row or thousands.
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
"""Quantiles of the seconds of requests."""
PERCENTILES = [number / 100 for number in range(101)]
COLLAPSE_CHANCE = 0.001
"""Scores that are all alike are harm if that is less likely among usual scores."""
DISTANCE_BY_CHANCE = 1.63
"""Factor of sqrt(1/n + 1/m) in the Kolmogorov-Smirnov distance that chance exceeds in 1 % of samples
(Smirnov 1948, Ann. Math. Statist. 19)."""
JITTER_SECONDS = 0.005
"""Seconds that do not count as slower in a rollout, whatever the ratio."""
IS_SCORED = "error IS NULL AND in_population"
MEASURE = f"""
SELECT role, version, count(*) AS rows, count(error) AS failed_rows,
  count(seconds) AS requests,
  coalesce(quantile_disc(seconds, {[*QUANTILES.values()]}), []) AS seconds,
  count(*) FILTER ({IS_SCORED}) AS scored_rows,
  coalesce(quantile_disc(coalesce(probability, prediction), {PERCENTILES})
    FILTER ({IS_SCORED}), []) AS scores
FROM logged GROUP BY role, version"""  # noqa: S608  (ours)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Figures of one version in one role within a span, from the log.

    Attributes:
        rows: Number of rows, answered or failed.
        failed_rows: Number of failed rows.
        requests: Number of requests whose time is known.
        seconds: Times of these requests by name of QUANTILES; empty if there is none.
        scored_rows: Number of answered rows of the label's population.
        scores: Percentiles 0 to 100 of the scores of these rows; empty if there is none.

    """

    rows: int = 0
    failed_rows: int = 0
    requests: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    scored_rows: int = 0
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HarmLimits:
    """Limits beyond which a version does harm compared with another.

    Attributes:
        failures: Share of failed rows above the other's share.
        latency: Factor of the other's seconds.
        latency_seconds: Seconds more than the other's.
        quantiles: Names of QUANTILES; all of them must be slower.
        distance: Kolmogorov-Smirnov distance of the scores; None: scores are not compared.
        fewest: Number of rows or requests of each version below which nothing is concluded.

    """

    failures: float
    latency: float
    latency_seconds: float
    quantiles: tuple[str, ...]
    distance: float | None
    fewest: int


def measure_variants(
    settings: Settings, model: RoleAssignment, since: datetime, until: datetime
) -> defaultdict[tuple[str, str], Variant]:
    """Measure the log of a span, by role and version. A pair without rows has an empty Variant.

    Args:
        settings: Settings of the installation.
        model: The model.
        since: Start of the span, which does not belong to it.
        until: End of the span.

    """
    variants: defaultdict[tuple[str, str], Variant] = defaultdict(Variant)
    with query_log(settings, model, since, until) as connection:
        for measured in connection.execute(MEASURE).to_arrow_table().to_pylist():
            key = (measured.pop("role"), measured.pop("version"))
            measured["seconds"] = dict(
                zip(QUANTILES, measured["seconds"], strict=False)
            )
            measured["scores"] = tuple(measured["scores"])
            variants[key] = Variant(**measured)
    return variants


def find_harm(challenger: Variant, production: Variant, policy: Rollout) -> str | None:
    """Return the harm that a challenger does compared with production; None if it does none.

    Args:
        challenger: Figures of the challenger, which answers the same traffic as production.
        production: Figures of production.
        policy: The spec's [rollout], which has the limits of harm.

    """
    limits = HarmLimits(
        failures=policy.errors,
        latency=policy.latency,
        latency_seconds=JITTER_SECONDS,
        quantiles=("p95",),
        distance=policy.scores,
        fewest=policy.requests,
    )
    return (
        failure_harm(challenger, production, limits)
        or latency_harm(challenger, production, limits)
        or score_harm(challenger, production, limits)
    )


def failure_harm(variant: Variant, other: Variant, limits: HarmLimits) -> str | None:
    """Return how many rows failed, if they are too many even with `fewest` rows in all."""
    usual_share = other.failed_rows / max(other.rows, limits.fewest)
    allowed = usual_share + limits.failures
    if variant.failed_rows <= allowed * max(variant.rows, limits.fewest):
        return None
    return (
        f"{variant.failed_rows} of {variant.rows} predictions failed, "
        f"at most {allowed:.1%} is allowed"
    )


def latency_harm(variant: Variant, other: Variant, limits: HarmLimits) -> str | None:
    """Return how slow requests are, if they are too slow."""
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
    """Return how scores have collapsed, or that they are surely too far from production's."""
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
        f"its scores are {score_distance:.2f} away from production's, "
        f"at most {limits.distance:g} is allowed"
    )


def collapse(
    scores: ArrayLike,
    usual_scores: ArrayLike,
    row_count: int,
    threshold: float | None = None,
) -> str | None:
    """Return how scores are all alike, or all on one side of a threshold, unlike usual scores.

    Args:
        scores: Scores, at least one.
        usual_scores: Scores for comparison; none where nothing is usual.
        row_count: Number of rows that the scores describe.
        threshold: Threshold of the version; None where there is none, as with numbers.

    """
    values = np.asarray(scores)
    usual_values = np.asarray(usual_scores)
    lowest = values.min()
    if lowest == values.max():
        share = np.mean(usual_values == lowest) if len(usual_values) else 0.0
        # A model with a single score is broken, even if that is usual.
        if share == 1 or share**row_count < COLLAPSE_CHANCE:
            return f"every one of {row_count} scores is {lowest:.6g}"
    if threshold is None or not len(usual_values):
        return None
    return collapsed_classes(
        np.where(values >= threshold, "positive", "negative"),
        np.where(usual_values >= threshold, "positive", "negative"),
    )


def collapsed_classes(classes: ArrayLike, usual_classes: ArrayLike) -> str | None:
    """Return that a single class is predicted, if that is not usual."""
    names = np.asarray(classes)
    share = np.mean(np.asarray(usual_classes) == names[0])
    if (names != names[0]).any() or share ** len(names) >= COLLAPSE_CHANCE:
        return None
    return f"every one of {len(names)} predictions is {names[0]}"


def distance(scores: Sequence[float], other_scores: Sequence[float]) -> float:
    """Return the Kolmogorov-Smirnov distance of two lists of scores."""
    return float(ks_2samp(scores, other_scores, method="asymp").statistic)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"

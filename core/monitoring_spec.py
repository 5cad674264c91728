"""What a model spec says of a version once it is trained: promotion, rollout, monitoring."""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.training_spec import Metric, Strict

PSI = "psi_"
YEAR = 365 * 24
"""Hours."""


class MetricLimit(Strict):
    """How bad a metric may be; at_least and at_most hold whatever it was at evaluation."""

    worse: float | None = Field(
        None, ge=0
    )  # than when the version was evaluated, in points
    worse_share: float | None = Field(None, ge=0)  # the same, as a share of what it was
    at_least: float | None = None
    at_most: float | None = None


KINDS = frozenset(
    {
        "data_drift",
        "prediction_drift",
        "nulls",
        "new_categories",
        "out_of_range",
        "positive_rate",
        "label_rate",
        "performance",
        "concept_drift",
        "calibration",
    }
)
"""Of what a window can be bad at (monitoring/checks)."""
METRIC_LIMITS: dict[str, dict[str, float]] = {
    **{name: {"worse": 0.05} for name in ("f1", "auc", "accuracy", "log_loss")},
    "rmse": {"worse_share": 0.05},
}
"""Of the metrics that a spec does not name."""
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class Monitoring(Strict):
    """`[monitoring]`: what a monitoring run measures against, and for how long it is patient.

    What is beyond a limit makes a window bad and may start a retraining. Shares are of 1.
    """

    monitor_only: tuple[
        str, ...
    ] = ()  # features and KINDS that are shown and never acted on
    checks: tuple[Annotated[str, Field(pattern=IMPORT_PATH)], ...] = ()  # a team's own

    windows: int = Field(5, ge=1)  # that count for a decision: the newest
    bad_windows: int = Field(
        2, ge=1
    )  # so many of them must be bad, the newest among them
    cooldown_hours: float = Field(
        24, ge=0, le=YEAR
    )  # between retrainings that drift started

    fewest: int = Field(200, ge=1)  # entities, values or outcomes; below, PSI is noise
    fewest_for_remark: int = Field(
        300, ge=1
    )  # values from which a moderate PSI is worth a word
    psi_moderate: float = Field(0.1, gt=0)
    psi_significant: float = Field(0.25, gt=0)
    nulls: float = Field(
        0.05, ge=0
    )  # points of their share above the reference's, beyond chance
    unseen: float = Field(
        0.05, ge=0
    )  # share of other categories, of numbers out of range
    unseen_remark: float = Field(0.01, ge=0)
    mean_score: float = Field(0.1, ge=0)
    """Change of the mean score as a share of what it was, and of the standard deviation of scores
    (of numbers around 0 the mean is no measure), and beyond chance."""
    standard_errors: float = Field(
        3.29, ge=0
    )  # beyond chance: 3.29 are exceeded 1 in 1,000
    label_rate: float | None = Field(
        None, ge=0
    )  # change of the mean label; None: only shown
    positive_rate: float | None = Field(
        None, ge=0
    )  # change of a segment's, in points; as above

    metrics: Annotated[
        dict[Metric, MetricLimit],
        BeforeValidator(
            lambda given: METRIC_LIMITS | given if isinstance(given, dict) else given
        ),
    ] = Field(default_factory=dict, validate_default=True)
    metric_errors: float = Field(3.0, ge=0)
    """Standard errors by which classes must be worse: so that chance makes one of four metrics
    worse in less than 1 of 100 runs (docs/monitoring.md)."""
    concept_drift: float = Field(
        0.05, ge=0
    )  # rise of a segment's mean log loss, in points
    concept_drift_share: float = Field(
        0.1, ge=0
    )  # of its mean squared error, as a share
    significance: float = Field(0.01, gt=0, lt=1)
    """The most that the adjusted p of concept drift may be, and that of a better version before."""
    fewest_of_segment: int = Field(100, ge=2)
    calibration: float = Field(
        0.05, ge=0
    )  # rise of the expected error, and beyond chance

    failures: float = Field(0.05, gt=0, le=1)  # share from which a version goes back
    fewest_requests: int = Field(100, ge=1)
    collapse_chance: float = Field(0.001, gt=0, lt=1)
    """A version goes back whose scores are all alike, if the reference makes that less likely."""
    slower: float = Field(
        3.0, ge=1
    )  # times the version before, and `slower_seconds` longer
    slower_seconds: float = Field(0.02, ge=0)
    counted_hours: float = Field(
        1, gt=0, le=YEAR
    )  # of failures and latency, or since promotion

    volume: float = Field(
        0.5, ge=0, le=1
    )  # share of the usual entities; below, a collapse
    fewest_windows: int = Field(3, ge=1)  # earlier windows that say what is usual
    freshness_hours: float = Field(
        2, gt=0, le=YEAR
    )  # ingest is hourly, and may miss once
    stale_hours: float = Field(1, gt=0, le=YEAR)  # how long a row may take to be online
    ahead_seconds: float = Field(60, ge=0)  # how far the clock of a sender may be ahead
    skew_vectors: int = Field(
        10_000, ge=2
    )  # logged vectors of a run that are compared offline

    def acted_on(self, figures: Mapping[str, float]) -> dict[str, float]:
        """By feature, the PSI among the figures of a run that was measured and may act."""
        psi = {
            key.removeprefix(PSI): v
            for key, v in figures.items()
            if key.startswith(PSI)
        }
        return {
            n: v for n, v in psi.items() if isfinite(v) and n not in self.monitor_only
        }


class Promotion(Strict):
    """`[promotion]`: approval: a person says yes, in Airflow, before a version is promoted.

    Without an answer within `wait_hours` it is not promoted.
    """

    approval: bool = False
    wait_hours: float = Field(72, gt=0, le=YEAR)


class Rollout(Strict):
    """`[rollout]`: how a version that training made comes into production.

    direct: at once. canary: as a shadow, then as a challenger that answers `steps` percent of the
    entities, then in production; every step judged by the limits below (monitoring/rollout.py).
    """

    policy: Literal["direct", "canary"] = "direct"
    steps: tuple[int, ...] = (5, 25, 50, 100)
    requests: int = Field(
        100, ge=100
    )  # of the population, to each version, for a judgement
    minutes: float = Field(10, ge=0, le=YEAR * 60)  # how long a step takes at least
    errors: float = Field(
        0.02, ge=0, lt=1
    )  # its share of failures above that of production
    latency: float = Field(2.0, ge=1)  # times production's, at the 95th percentile
    scores: float = Field(0.5, gt=0, le=1)
    """How far its scores may lie from production's: the largest difference between the shares of
    both below any one score (Kolmogorov-Smirnov), 0 to 1. A version of today lies 0.34 from one of
    180 days ago on the shipped history."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        steps, rising = list(self.steps), sorted(set(self.steps))
        if not rising or steps != rising or not 1 <= rising[0] <= rising[-1] <= 100:  # noqa: PLR2004
            raise ValueError(
                f"steps: expected rising percents like [5, 25, 50, 100], found {steps}"
            )
        return self

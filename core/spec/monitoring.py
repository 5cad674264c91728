"""What a model spec says of a version once it is trained: promotion, rollout, monitoring."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.spec.training import LOWER_IS_BETTER, Metric, OfSegments, Strict

YEAR = 365 * 24
"""Hours."""


class MetricLimit(Strict):
    """How bad a metric may be: worse than at evaluation by at most `worse` plus `worse_share`, beyond
    chance; and never beyond `at_least` or `at_most`.
    """

    worse: float | None = Field(None, ge=0)
    """Than when the version was evaluated, in points."""
    worse_share: float | None = Field(None, ge=0)
    """The same, as a share of what it was."""
    at_least: float | None = None
    """Whatever it was at evaluation; of a metric of which more is better."""
    at_most: float | None = None
    """Whatever it was at evaluation; of a metric of which less is better."""

    @property
    def is_relative(self) -> bool:
        """Whether it names how much worse than at evaluation the metric may be."""
        return self.worse is not None or self.worse_share is not None


KINDS = frozenset(
    {
        "data_drift",
        "prediction_drift",
        "missing",
        "new_categories",
        "out_of_range",
        "performance_drift",
        "concept_drift",
        "harm",
        "skew",
        "volume",
        "freshness",
        "online_store",
        "bias",
        "label_drift",
        "serving",
    }
)
"""What checks are about (monitoring/check.py)."""
RELATIVE = {"worse", "worse_share"}
METRIC_LIMITS: dict[str, dict[str, float]] = {
    "f1": {"worse": 0.05},
    "auc": {"worse": 0.05},
    "accuracy": {"worse": 0.05},
    "log_loss": {"worse": 0.05},
    "rmse": {"worse_share": 0.05},
}
"""How much worse a metric may be where the spec does not say it."""
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def _with_defaults(given: object) -> object:
    """Add the defaults, also to a metric that has a floor or a ceiling alone."""
    if not isinstance(given, dict):
        return given
    limits: dict[str, object] = {**METRIC_LIMITS, **given}
    for metric, limit in given.items():
        if isinstance(limit, dict) and not limit.keys() & RELATIVE:
            limits[metric] = METRIC_LIMITS.get(metric, {}) | limit
    return limits


class Monitoring(Strict):
    """`[monitoring]`: what a monitoring run measures against, and for how long it is patient.

    Drift beyond `psi_significant`, missing values beyond `nulls` or a metric beyond its limit makes
    a window bad, which may start a retraining. Each other limit says what follows. Shares are of 1.
    """

    monitor_only: dict[str, str] = Field(default_factory=dict)
    """What is shown and never acts, and why: a feature, a kind or a figure = "reason"."""
    checks: tuple[Annotated[str, Field(pattern=IMPORT_PATH)], ...] = ()
    """Checks of your own: functions as module:name."""
    windows: int = Field(5, ge=1, le=100)
    """The number of newest windows that count for a decision."""
    bad_windows: int = Field(2, ge=1)
    """The number of these that must be bad, the newest among them."""
    cooldown_hours: float = Field(24, ge=0, le=YEAR)
    """Between two retrainings that drift started."""
    fewest: int = Field(200, ge=1)
    """Entities, values or outcomes below which nothing is judged: PSI is noise then."""
    psi_moderate: float = Field(0.1, gt=0)
    """PSI from which drift is noted."""
    psi_significant: float = Field(0.25, gt=0)
    """PSI from which drift acts, where it is beyond the usual spread too."""
    nulls: float = Field(0.05, gt=0)
    """Rise of the share of missing values, in points, beyond chance."""
    metrics: Annotated[dict[Metric, MetricLimit], BeforeValidator(_with_defaults)] = (
        Field(default_factory=dict, validate_default=True)
    )
    """How bad performance may be, by metric."""
    bias: dict[OfSegments, Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=dict
    )
    """How far segments may lie apart, by figure: an alert goes out beyond it. None by default."""
    label_change: float = Field(0.1, gt=0)
    """How far outcomes may lie from those of the evaluation, beyond chance: the share of a class in
    points of 1, the mean of numbers in standard deviations. An alert goes out beyond it."""
    failures: float = Field(0.05, gt=0, le=1)
    """Share of failed rows from which a version goes back."""
    freshness_hours: float = Field(1, gt=0, le=YEAR)
    """Age of features from which an alert goes out: ingest runs every 20 minutes, and may miss once."""

    @property
    def feature_age_limit(self) -> timedelta:
        """Return `freshness_hours` as a period."""
        return timedelta(hours=self.freshness_hours)

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.bad_windows > self.windows:
            raise ValueError(
                f"bad_windows: expected at most windows ({self.windows}), "
                f"found {self.bad_windows}: drift would never retrain"
            )
        if self.psi_moderate > self.psi_significant:
            raise ValueError(
                f"psi_moderate: expected at most psi_significant ({self.psi_significant:g}), "
                f"found {self.psi_moderate:g}"
            )
        for metric, limit in self.metrics.items():
            is_low_good = metric in LOWER_IS_BETTER
            useless = limit.at_least if is_low_good else limit.at_most
            if useless is not None:
                key = "at_most" if is_low_good else "at_least"
                raise ValueError(
                    f"metrics.{metric}: expected {key}, as "
                    f"{'less' if is_low_good else 'more'} of it is better"
                )
        return self


class Promotion(Strict):
    """`[promotion]`: approval: a person says yes, in Airflow, before a version is promoted.

    `train_<MODEL>` starts `approve_<MODEL>`, which asks and alerts. Trainings go on meanwhile. Without
    an answer within `wait_hours` it is not promoted.
    """

    approval: bool = False
    wait_hours: float = Field(72, gt=0, le=YEAR)


class Rollout(Strict):
    """`[rollout]`: how a version that training made comes into production.

    direct: at once. canary: as a shadow, then as a challenger that answers `steps` percent of the
    entities, then in production; every step judged by the limits below (monitoring/trials/rollout.py).
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

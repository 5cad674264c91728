"""The part of a model spec about trained versions: promotion, rollout, monitoring."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.spec.training import LOWER_IS_BETTER, Metric, OfSegments, Strict

YEAR_HOURS = 365 * 24


class MetricLimit(Strict):
    """How bad a metric may be: worse than at evaluation by at most `worse` plus `worse_share`, beyond
    chance; and never below `at_least` or above `at_most`.
    """

    worse: float | None = Field(None, ge=0)
    """Largest difference from the evaluation of the version, in points."""
    worse_share: float | None = Field(None, ge=0)
    """Largest difference from the evaluation of the version, as a share of its value there."""
    at_least: float | None = None
    """Floor of a metric of which more is better, whatever the evaluation measured."""
    at_most: float | None = None
    """Ceiling of a metric of which less is better, whatever the evaluation measured."""

    @property
    def is_relative(self) -> bool:
        """Whether it limits the difference from the evaluation."""
        return self.worse is not None or self.worse_share is not None


CHECK_KINDS = frozenset(
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
"""Subjects of checks (monitoring/check.py)."""
RELATIVE = {"worse", "worse_share"}
METRIC_LIMITS: dict[str, dict[str, float]] = {
    "f1": {"worse": 0.05},
    "auc": {"worse": 0.05},
    "accuracy": {"worse": 0.05},
    "log_loss": {"worse": 0.05},
    "rmse": {"worse_share": 0.05},
}
"""Limits of metrics that the spec does not name."""
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def _with_defaults(given: object) -> object:
    """Add the default limits, also to a metric that has a floor or a ceiling alone."""
    if not isinstance(given, dict):
        return given
    limits: dict[str, object] = {**METRIC_LIMITS, **given}
    for metric, limit in given.items():
        if isinstance(limit, dict) and not limit.keys() & RELATIVE:
            limits[metric] = METRIC_LIMITS.get(metric, {}) | limit
    return limits


class Monitoring(Strict):
    """`[monitoring]`: limits of a monitoring run, and how many bad windows it waits for.

    Drift beyond `psi_significant`, missing values beyond `nulls` or a metric beyond its limit makes
    a window bad, which may start a retraining. Each other limit says what follows. Shares are of 1.
    """

    monitor_only: dict[str, str] = Field(default_factory=dict)
    """Findings that are shown and never act: a feature, a kind or a figure = "reason"."""
    checks: tuple[Annotated[str, Field(pattern=IMPORT_PATH)], ...] = ()
    """Checks of your own: functions as module:name."""
    windows: int = Field(5, ge=1, le=100)
    """The number of newest windows that count for a decision."""
    bad_windows: int = Field(2, ge=1)
    """How many of these windows must be bad, the newest among them."""
    cooldown_hours: float = Field(24, ge=0, le=YEAR_HOURS)
    """Shortest time between two retrainings that drift started."""
    fewest: int = Field(200, ge=1)
    """Fewest entities, values or outcomes that are judged: PSI of fewer is noise."""
    psi_moderate: float = Field(0.1, gt=0)
    """PSI from which drift is noted."""
    psi_significant: float = Field(0.25, gt=0)
    """PSI from which drift acts, if it is beyond the usual spread too."""
    nulls: float = Field(0.05, gt=0)
    """Largest rise of the share of missing values, in points, beyond chance."""
    metrics: Annotated[dict[Metric, MetricLimit], BeforeValidator(_with_defaults)] = (
        Field(default_factory=dict, validate_default=True)
    )
    """How bad performance may be, by metric."""
    bias: dict[OfSegments, Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=dict
    )
    """Largest difference between segments, by figure; beyond it an alert goes out. Default: none."""
    label_change: float = Field(0.1, gt=0)
    """Largest difference between outcomes and the evaluation's labels, beyond chance: the share of a
    class in points of 1, the mean of numbers in standard deviations. Beyond it an alert goes out."""
    failures: float = Field(0.05, gt=0, le=1)
    """Share of failed rows from which a version is rolled back."""
    freshness_hours: float = Field(1, gt=0, le=YEAR_HOURS)
    """Age of features from which an alert goes out: an ingest, every 20 minutes, may fail once."""

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
    """`[promotion]`: with `approval` a person has to agree, in Airflow, before a promotion.

    `train_<MODEL>` starts `approve_<MODEL>`, which asks and alerts. Trainings go on meanwhile. Without
    an answer within `wait_hours` the version is not promoted.
    """

    approval: bool = False
    wait_hours: float = Field(72, gt=0, le=YEAR_HOURS)


class Rollout(Strict):
    """`[rollout]`: how a version that training made comes into production.

    direct: it comes at once. canary: it is a shadow, then a challenger that answers `steps` percent
    of the entities, then in production; the limits below judge every step
    (monitoring/trials/rollout.py).
    """

    policy: Literal["direct", "canary"] = "direct"
    steps: tuple[int, ...] = (5, 25, 50, 100)
    requests: int = Field(
        100, ge=100
    )  # requests of the population that each version needs for a judgement
    minutes: float = Field(10, ge=0, le=YEAR_HOURS * 60)  # shortest time of a step
    errors: float = Field(
        0.02, ge=0, lt=1
    )  # how far its share of failures may lie above production's
    latency: float = Field(
        2.0, ge=1
    )  # how many times production's its 95th percentile may be
    scores: float = Field(0.5, gt=0, le=1)
    """Largest distance of its scores from production's, 0 to 1: the largest difference between the
    shares of both below any score (Kolmogorov-Smirnov). On the shipped history a version of today
    lies 0.34 from one of 180 days ago."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        steps, rising = list(self.steps), sorted(set(self.steps))
        if not rising or steps != rising or not 1 <= rising[0] <= rising[-1] <= 100:  # noqa: PLR2004
            raise ValueError(
                f"steps: expected rising percents like [5, 25, 50, 100], found {steps}"
            )
        return self

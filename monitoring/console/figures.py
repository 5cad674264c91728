"""The figures that the page of a model shows first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from monitoring.check import CheckResult

REQUESTS = "serving/requests_per_minute"
LATENCIES = ("serving/p50_ms", "serving/p95_ms", "serving/p99_ms")
DRIFT_GROUP = "psi/"
"""How the names of checks of drift begin."""
OUTCOME_GROUPS = ("online", "backfilled")
"""Groups of metrics on outcomes, the more recent first."""


@dataclass(frozen=True)
class Figures:
    """Results of the newest monitoring run.

    Attributes:
        results: Results with a value by their names.
        drift: Drift of each feature, that which acts and is worst first.
        quality: The metric on outcomes by which versions are compared; None: no outcome is known.
        evaluated: Its value at the evaluation of the version; None: it is not known.

    """

    results: Mapping[str, CheckResult]
    drift: list[CheckResult]
    quality: CheckResult | None = None
    evaluated: float | None = None

    @property
    def worst_drift(self) -> CheckResult | None:
        """The drift that acts and is nearest to its limit or beyond."""
        acting = (result for result in self.drift if result.acts and result.limit)
        return next(acting, None)

    @property
    def names(self) -> set[str]:
        """Names of the checks whose history is drawn."""
        results = filter(None, [*self.drift, self.quality])
        return {REQUESTS, *LATENCIES, *(result.name for result in results)}


def figures_of(
    results: Iterable[CheckResult], metric: str, evaluation: Mapping[str, float]
) -> Figures:
    """Choose the figures of a model.

    Args:
        results: Results of its newest monitoring run.
        metric: Name of the metric by which its versions are compared.
        evaluation: Metrics of the run that made the version.

    """
    result_of_name = {
        result.name: result for result in results if result.value is not None
    }
    drift = [
        result
        for name, result in result_of_name.items()
        if name.startswith(DRIFT_GROUP)
    ]
    qualities = [result_of_name.get(f"{group}/{metric}") for group in OUTCOME_GROUPS]
    return Figures(
        results=result_of_name,
        drift=sorted(drift, key=_drift_order),
        quality=next(filter(None, qualities), None),
        evaluated=evaluation.get(f"test/{metric}"),
    )


def _drift_order(result: CheckResult) -> tuple[bool, float]:
    return not result.acts, -(result.value or 0.0) / (result.limit or 1.0)

"""The metrics of Evidently's report, each with the tests that decide on it.

Importing this module imports Evidently, which takes 5 s.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from evidently import ColumnType, Dataset
from evidently.core.metric_types import (
    Metric,
    SingleValue,
    SingleValueCalculation,
    SingleValueMetric,
)
from evidently.core.report import Context
from evidently.core.tests import GenericTest
from evidently.legacy.calculations.stattests import StatTest, register_stattest
from evidently.metrics import (
    InListValueCount,
    MeanValue,
    MissingValueCount,
    OutRangeValueCount,
    QuantileValue,
    ValueDrift,
)
from evidently.tests import gte, lt, lte

from core.spec.monitoring import Monitoring
from monitoring.measurements.performance import MeasuredMetric
from training.evaluation.psi import SCORE, UsualSpread, psi
from training.evaluation.reference import PREDICTED_CLASS, Reference

PSI_METHOD = "psi_reference_deciles"
FEWEST_FOR_MODERATE = 300
"""Number of values from which a moderate PSI is a note."""
SHOWN_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
"""Quantiles of a column of numbers that are shown."""
UNSEEN_SHARE = 0.05
UNSEEN_SHARE_NOTED = 0.01
MEAN_SCORE_CHANGE = 0.1
"""Share of the mean score, or of the standard deviation of scores, as numbers may lie around 0."""
STANDARD_ERRORS = 3.29
"""Standard errors that chance exceeds 1 in 1,000 times."""


@dataclass(frozen=True, kw_only=True)
class ReportLine:
    """A metric of the report, and the meaning of its result.

    Attributes:
        name: Name of the check's result.
        kind: Kind of the check's result.
        feature: Feature of the check's result.
        metric: Metric with the tests that decide. Without tests it is only shown.
        words: Function that returns a sentence on the figure.
        figure: Function that computes the figure without Evidently, which raises an error where it
            cannot draw a column. None: the figure decides nothing.
        unknown: Why the figure is not known; empty if it is known.

    """

    name: str
    kind: str
    feature: str
    metric: Metric
    words: Callable[[float], str]
    figure: Callable[[], float] | None = None
    unknown: str = ""

    @property
    def tests(self) -> list[GenericTest]:
        """Tests of the figure."""
        share_tests = getattr(self.metric, "share_tests", None)
        return list(share_tests or self.metric.tests or [])


class GivenValue(SingleValueMetric):  # type: ignore[misc]  # Evidently has no types
    """A figure that Evidently shows and does not compute."""

    title: str
    value: float


class GivenValueCalculation(SingleValueCalculation[GivenValue]):  # type: ignore[misc]
    def calculate(self, context: Context, *datasets: Dataset | None) -> SingleValue:  # noqa: ARG002
        return self.result(self.metric.value)

    def display_name(self) -> str:
        return str(self.metric.title)


@dataclass(frozen=True)
class Column:
    """A column of window and reference, with its lines of the report."""

    name: str
    reference: pd.Series
    window: pd.Series
    limits: Monitoring
    spread: UsualSpread

    @property
    def value_count(self) -> int:
        """The smaller number of values, of window and reference."""
        return int(min(self.reference.count(), self.window.count()))

    @property
    def has_enough(self) -> bool:
        """Whether tests are critical: a few values prove nothing."""
        return self.value_count >= self.limits.fewest

    @property
    def is_number(self) -> bool:
        return bool(pd.api.types.is_numeric_dtype(self.reference))

    def lines(self) -> list[ReportLine]:
        if not self.value_count:  # Evidently cannot compare a column without values
            return [self.missing()]
        lines = [self.missing(), self.drift(), self.p_value()]
        if not self.is_number:
            return [*lines, self.new_categories()]
        lines.append(self.mean())
        if self.name != SCORE:
            lines.append(self.out_of_range())
        quantiles = SHOWN_QUANTILES.items()
        return [*lines, *(self.quantile(name, share) for name, share in quantiles)]

    def line(
        self,
        group: str,
        metric: Metric,
        words: Callable[[float], str],
        figure: Callable[[], float] | None = None,
        kind: str = "",
    ) -> ReportLine:
        is_of_model = self.name in (SCORE, PREDICTED_CLASS)
        drift_kind = "prediction_drift" if is_of_model else "data_drift"
        return ReportLine(
            name=f"{group}/{self.name}",
            kind=kind or drift_kind,
            feature=self.name,
            metric=metric,
            words=lambda value: f"{self.name}: {words(value)}",
            figure=figure,
        )

    def missing(self) -> ReportLine:
        row_count = len(self.window)
        share = float(self.reference.isna().mean())
        most = min(share + max(self.limits.nulls, by_chance(share, row_count)), 1.0)
        test = lt(most, is_critical=row_count >= self.limits.fewest)
        line = self.line(
            "missing",
            MissingValueCount(
                column=self.name, tests=[], share_tests=[test] if share < 1 else []
            ),
            lambda value: (
                f"{value:.0%} missing, {share:.0%} in the reference, "
                f"bad from {most:.0%}"
            ),
            figure=lambda: self.window.isna().mean(),
            kind="missing",
        )
        if share == 1:
            return replace(line, unknown=f"{self.name}: the reference has no value")
        return line

    def drift(self) -> ReportLine:
        usual = self.spread.psi.get(self.name, 0.0)
        significant = max(self.limits.psi_significant, usual)
        tests = [lt(significant, is_critical=self.has_enough)]
        if self.value_count >= FEWEST_FOR_MODERATE:
            moderate = max(self.limits.psi_moderate, usual)
            tests = [lt(moderate, is_critical=False), *tests]
        meaning = f"drift from {significant:.2f}"
        if usual > self.limits.psi_significant:
            meaning = f"normal windows reach {usual:.2f}, a larger PSI is drift"
        if not self.has_enough:
            meaning = f"of {self.value_count} values, too few to judge"
        return self.line(
            "psi",
            ValueDrift(
                column=self.name, method=PSI_METHOD, threshold=significant, tests=tests
            ),
            lambda value: f"PSI {value:.2f}, {meaning}",
            figure=lambda: psi(self.reference, self.window),
        )

    def p_value(self) -> ReportLine:
        """Return the p of a textbook test, which is only shown: with many rows it is always small."""
        group = "ks" if self.is_number else "chi2"
        method = "ks" if self.is_number else "chisquare"
        return self.line(
            group,
            # Without `tests` Evidently adds the test p < 0.05.
            ValueDrift(column=self.name, method=method, threshold=0.0, tests=[]),
            lambda value: f"p = {value:.3g} ({method}), shown alone",
        )

    def mean(self) -> ReportLine:
        """Return the mean. A change of the mean score is judged, in both directions."""
        mean = float(self.reference.mean())
        tests: list[GenericTest] = []
        meaning = ""
        if self.name == SCORE:
            allowed = self.allowed_change(mean)
            meaning = f", a change of more than {allowed:.2g} counts"
            low = gte(mean - allowed, is_critical=self.has_enough)
            high = lte(mean + allowed, is_critical=self.has_enough)
            tests = [low, high]
        return self.line(
            "mean",
            MeanValue(column=self.name, tests=tests),
            lambda value: f"mean {value:.3g}, {mean:.3g} in the reference{meaning}",
            figure=self.window.mean if tests else None,
        )

    def allowed_change(self, mean: float) -> float:
        """Return the change of a mean score that is allowed."""
        deviation = float(self.reference.std(ddof=0))
        # Standard error of the difference (Welch, Biometrika 34, 1947).
        error = math.sqrt(
            self.reference.var(ddof=0) / self.reference.count()
            + self.window.var(ddof=0) / self.window.count()
        )
        return max(
            MEAN_SCORE_CHANGE * max(abs(mean), deviation),
            STANDARD_ERRORS * error,
            self.spread.mean_score,
        )

    def quantile(self, name: str, share: float) -> ReportLine:
        """Return a quantile, which is only shown."""
        old_value = float(self.reference.quantile(share))
        return self.line(
            name,
            QuantileValue(column=self.name, quantile=share, tests=[]),
            lambda value: (
                f"{share:.0%} quantile {value:.3g}, {old_value:.3g} in the reference"
            ),
        )

    def out_of_range(self) -> ReportLine:
        least = float(self.reference.min())
        most = float(self.reference.max())
        values = self.window.dropna()
        metric = OutRangeValueCount(
            column=self.name,
            left=least,
            right=most,
            tests=[],
            share_tests=self.unseen_tests(usual_share=0.0),
        )
        return self.line(
            "unseen",
            metric,
            lambda value: f"{value:.1%} out of the reference's range",
            figure=lambda: 1 - values.between(least, most).mean(),
            kind="out_of_range",
        )

    def new_categories(self) -> ReportLine:
        row_counts = self.reference.value_counts()
        values = self.window.dropna()
        new = set(values) - {*row_counts.index}
        # New rows are as frequent as categories of one row were (Good, Biometrika 40, 1953).
        usual_share = float((row_counts == 1).sum() / row_counts.sum())
        metric = InListValueCount(
            column=self.name,
            values=sorted(new),
            tests=[],
            share_tests=self.unseen_tests(usual_share),
        )
        return self.line(
            "unseen",
            metric,
            lambda value: f"{value:.1%} of categories that are not in the reference",
            figure=lambda: values.isin(new).mean(),
            kind="new_categories",
        )

    def unseen_tests(self, usual_share: float) -> list[GenericTest]:
        chance = by_chance(usual_share, self.value_count)
        noted = usual_share + max(UNSEEN_SHARE_NOTED, chance)
        most = usual_share + max(UNSEEN_SHARE, chance)
        return [lt(noted, is_critical=False), lt(most, is_critical=self.has_enough)]


def by_chance(share: float, row_count: int) -> float:
    """Return how far the share of so many rows may lie from `share` by chance."""
    return STANDARD_ERRORS * math.sqrt(share * (1 - share) / row_count)


def report_lines(
    limits: Monitoring,
    reference: Reference,
    window: pd.DataFrame,
    metrics: Sequence[MeasuredMetric],
) -> list[ReportLine]:
    """Return the lines of the report. Their limits are known before it runs."""
    lines = [performance_line(measured) for measured in metrics]
    if window.empty or reference.rows.empty:
        return lines
    for name in map(str, window):
        column = Column(
            name, reference.rows[name], window[name], limits, reference.spread
        )
        lines += column.lines()
    return lines


def performance_line(measured: MeasuredMetric) -> ReportLine:
    better = lte if measured.lower_is_better else gte
    tests = [] if measured.limit is None else [better(measured.limit)]
    title = f"{measured.name} of {measured.rows:,} rows"
    if math.isfinite(measured.low):
        title += f", 95 % interval {measured.low:.3f} to {measured.high:.3f}"
    return ReportLine(
        name=measured.name,
        kind=measured.kind,
        feature=measured.metric,
        metric=GivenValue(title=title, value=measured.value, tests=tests),
        words=lambda _value: measured.words,
    )


def _psi_test(
    reference: pd.Series, current: pd.Series, _type: ColumnType, threshold: float
) -> tuple[float, bool]:
    value = psi(reference, current)
    return value, value >= threshold


# The bins of Evidently's PSI have equal widths and miss heavy tails.
register_stattest(
    StatTest(
        name=PSI_METHOD,
        display_name="PSI over reference deciles",
        allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
        default_threshold=0.25,
    ),
    _psi_test,
)

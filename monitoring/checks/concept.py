"""Does the version still know what it knew? Its errors and rates then and now, also by segment.

Then: the snapshot it was evaluated on. Now: the newest that has matured since.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ttest_ind
from statsmodels.stats.multitest import multipletests

from core.monitoring_spec import Monitoring
from mlflow_server.window_details import SegmentRate
from monitoring.checks.result import SCORE, CheckResult, Status
from monitoring.run import MonitoringRun, Reference
from training.metrics import Labels, Scored, Scores, losses, top_class
from training.metrics import calibration as calibration_of

DRAWS, PERCENTILE = 200, 0.95


@dataclass(frozen=True)
class Outcomes:
    """Rows with what came true, what was said of them, and their segment (str [N]), if any."""

    y: Labels
    said: Scored
    segment: NDArray[np.object_] | None = None

    def of_segment(self, value: object) -> "Outcomes":
        rows = self.segment == value
        return Outcomes(self.y[rows], self.said.of(rows))


@dataclass(frozen=True)
class Rise:
    """Mean loss of a segment (None: of all rows) then and now; p: adjusted, that it did not rise.

    rows: now.
    """

    segment: str | None
    before: float
    now: float
    p: float
    rows: int


def concept_drift(run: MonitoringRun, reference: Reference) -> Iterator[CheckResult]:
    if outcomes := _then_and_now(run, reference):
        limits = run.spec.monitoring
        found = rises(*outcomes, limits.fewest_of_segment)
        yield CheckResult("concept_p", min(rise.p for rise in found))
        yield from judge_rises(
            limits, found, classes=reference.said.task != "regression"
        )


def calibration(run: MonitoringRun, reference: Reference) -> Iterator[CheckResult]:
    if outcomes := _then_and_now(run, reference):
        yield judge_calibration(run.spec.monitoring, *outcomes, run.spec.seed)


def label_rate(run: MonitoringRun, reference: Reference) -> Iterator[CheckResult]:
    """Mean label of the outcomes known, or share of each class, against the evaluated snapshot."""
    limit, classes = run.spec.monitoring.label_rate, run.spec.classes
    for judged in run.judged:
        name, y = (
            f"{judged.performance.kind}_label_rate",
            judged.rows["label"].to_numpy(),
        )
        parts = {
            f"_{each}": (y == at, reference.y == at) for at, each in enumerate(classes)
        }
        for part, labels in (parts or {"": (y, reference.y)}).items():
            now, was = (float(np.mean(each)) for each in labels)
            yield _judge_rate(
                name + part, "label_rate", part[1:] or "label", now, was, limit
            )


def positive_rate(run: MonitoringRun, reference: Reference) -> Iterator[CheckResult]:
    """Share of 1 said of each segment with enough entities, against the evaluated snapshot."""
    limit = run.spec.monitoring.positive_rate
    for segment, rate in segment_rates(run, reference).items():
        name = f"positive_rate_{segment}"
        yield _judge_rate(name, "positive_rate", segment, rate.now, rate.was, limit)


def segment_rates(run: MonitoringRun, reference: Reference) -> dict[str, SegmentRate]:
    """Share of 1 said of each segment with enough entities, then and now; {} of other tasks."""
    segment, threshold = run.spec.segment, reference.said.threshold
    if threshold is None or segment not in reference.rows:
        return {}
    before, now = (
        (frame[SCORE] >= threshold).groupby(frame[segment])
        for frame in (reference.population, run.window.rows)
    )
    rates = pd.DataFrame(
        {"was": before.mean(), "now": now.mean(), "rows": now.size()}
    ).dropna()
    rates = rates[rates["rows"] >= run.spec.monitoring.fewest_of_segment]
    columns = (rates[name].tolist() for name in ("was", "now", "rows"))
    values = zip(map(str, rates.index), *columns, strict=True)
    return {
        name: SegmentRate(was, share, int(rows)) for name, was, share, rows in values
    }


def rises(before: Outcomes, now: Outcomes, fewest: int) -> list[Rise]:
    """Compare all rows first, then every segment that both have `fewest` rows of.

    One-sided Welch's t-test (Biometrika 34, 1947), adjusted by Holm (Scandinavian Journal of
    Statistics 6, 1979): the chance that any at all is found is the level. The same customers in
    both make it err on the quiet side.
    """
    pairs: dict[str | None, tuple[Outcomes, Outcomes]] = {None: (before, now)}
    if before.segment is not None and now.segment is not None:
        for value in sorted(set(before.segment) & set(now.segment)):
            parts = before.of_segment(value), now.of_segment(value)
            if min(len(part.y) for part in parts) >= fewest:
                pairs[str(value)] = parts
    found = [_rise(segment, *pair) for segment, pair in pairs.items()]
    adjusted = multipletests([rise.p for rise in found], method="holm")[1]
    return [replace(rise, p=float(p)) for rise, p in zip(found, adjusted, strict=True)]


def judge_rises(
    limits: Monitoring, found: Sequence[Rise], *, classes: bool
) -> Iterator[CheckResult]:
    """What is surely and much worse is bad; what is surely worse, not by much, a remark."""
    loss = "log loss" if classes else "squared error"
    for rise in found:
        most = (
            limits.concept_drift
            if classes
            else limits.concept_drift_share * rise.before
        )
        where = f"segment {rise.segment}" if rise.segment else "all rows"
        text = (
            f"concept drift, {where}: {loss} {rise.now:.3g}, was {rise.before:.3g} "
            f"(p {rise.p:.2g}, {rise.rows} rows)"
        )
        status: Status = "ok"
        if rise.p < limits.significance:
            status = "bad" if rise.now - rise.before >= most else "remark"
        name, feature = f"concept_loss_{rise.segment or 'all'}", rise.segment or "loss"
        limit = rise.before + most
        yield CheckResult(name, rise.now, limit, status, text, "concept_drift", feature)


def judge_calibration(
    limits: Monitoring, before: Outcomes, now: Outcomes, seed: int
) -> CheckResult:
    """Judge whether the expected calibration error rose too much; of numbers it is not judged.

    What chance gives: its 95th percentile where scores are true (consistency resampling, Bröcker
    and Smith, Weather and Forecasting 22, 2007); few rows have it though nothing is wrong.
    """
    most, classes = limits.calibration, now.said.task != "regression"
    ece, was = (
        _ece(*top_class(outcomes.y, outcomes.said)) for outcomes in (now, before)
    )
    usual = was
    if classes and ece - was >= most:
        random, p = np.random.default_rng(seed), now.said.top
        chance = [
            _ece((random.random(len(p)) < p).astype(np.int64), p) for _ in range(DRAWS)
        ]
        usual = max(was, float(np.quantile(chance, PERCENTILE)))
    status: Status = "bad" if classes and ece - usual >= most else "ok"
    text = f"calibration error {ece:.3f} ({len(now.y)} rows), was {was:.3f}"
    return CheckResult(
        "backfilled_ece", ece, usual + most, status, text, "calibration", SCORE
    )


def _rise(segment: str | None, before: Outcomes, now: Outcomes) -> Rise:
    then, today = (losses(outcomes.y, outcomes.said) for outcomes in (before, now))
    if then.std() == today.std() == 0:
        p = float(today.mean() <= then.mean())
    else:
        p = ttest_ind(today, then, equal_var=False, alternative="greater").pvalue
    return Rise(segment, float(then.mean()), float(today.mean()), p, len(today))


def _then_and_now(
    run: MonitoringRun, reference: Reference
) -> tuple[Outcomes, Outcomes] | None:
    judged, segment = run.backfilled, run.spec.segment
    if judged is None:
        return None
    then, now = reference.rows, judged.rows.to_pandas()
    before = Outcomes(reference.y, reference.said)
    after = Outcomes(now["label"].to_numpy(), judged.scored)
    if segment in then and segment in now:
        before = replace(before, segment=then[segment].to_numpy())
        after = replace(after, segment=now[segment].to_numpy())
    return before, after


def _ece(y: Labels, p: Scores) -> float:
    return calibration_of(y, p)["ece"]


def _judge_rate(
    name: str, kind: str, feature: str, now: float, was: float, limit: float | None
) -> CheckResult:
    status: Status = "ok" if limit is None or abs(now - was) <= limit else "bad"
    text = f"{kind.replace('_', ' ')} of {feature}: {now:.3f}, was {was:.3f}"
    return CheckResult(name, now, limit, status, text, kind, feature)

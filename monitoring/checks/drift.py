"""Drift: how far a window's features and scores are from the version's own evaluated snapshot.

PSI over reference deciles is registered with Evidently as its drift method, so the figure in its
report is the figure that decides.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.monitoring_spec import Monitoring
from core.spec import MISSING
from core.user_code import in_one_line
from monitoring.checks.result import PREDICTED, SCORE, CheckResult, Status, by_chance
from monitoring.run import MonitoringRun, Reference

Counts: TypeAlias = NDArray[np.int64]
log = logging.getLogger(__name__)
METHOD = "psi_reference_deciles"
MOST_ROWS = 100_000
"""Entities that go into Evidently's report: a sample of fixed seed where there are more."""
DECILES = np.linspace(0.1, 0.9, 9)
SMALLEST_SHARE = 1e-4
"""Stands for an empty bin, whose logarithm is not finite."""
BINS = 10
"""Of categories as of deciles: with more, a small window's PSI would be chance's."""
UNSEEN = {
    "new_categories": "of categories that the reference has not",
    "out_of_range": "out of the reference's range",
}


def drift(run: MonitoringRun, reference: Reference) -> list[CheckResult]:
    """Compare all columns; nothing where the window is too small."""
    limits, rows = run.spec.monitoring, run.window.rows
    if len(rows) < limits.fewest:
        return []
    return measure(limits, reference.population, rows[list(reference.rows)], run.folder)


def measure(
    limits: Monitoring, reference: pd.DataFrame, current: pd.DataFrame, folder: Path
) -> list[CheckResult]:
    """Compare the features and `score`; write Evidently's `report.html` and `report.json`.

    What Evidently cannot show, such as numbers too close together for a histogram, is judged too.
    """
    results = compared(limits, reference, current)
    try:
        _write_report(reference, current, limits.psi_significant, folder)
    except Exception as exc:  # whatever it is, what decides is counted without it
        log.warning("Evidently made no report", exc_info=True)
        text = f"Evidently made no report: {in_one_line(exc)}"
        results.append(CheckResult("report", status="remark", remark=text))
    return results


def compared(
    limits: Monitoring, reference: pd.DataFrame, current: pd.DataFrame
) -> list[CheckResult]:
    """What decides, over all rows, without Evidently's report."""
    # One at a time: a copy of all would not fit beside them.
    return [
        result
        for name in map(str, reference)
        for result in _compare_column(limits, name, reference[name], current[name])
    ]


def psi(reference: "pd.Series[Any]", current: "pd.Series[Any]") -> float:
    """Population stability index of `current`; nulls are left out, their rate is another check.

    Numbers are cut at the reference's deciles (ties merged, open at both ends), where it has two,
    such as a bool's, at these; anything else by category, what the reference has not in a bin of
    its own. Of more than ten categories, the most frequent first, those that together make a tenth
    of the reference share a bin, and what it has not is with the rarest: some is to be expected.
    Nan where one of the two has no value.

    Source: Siddiqi, Credit Risk Scorecards (2006): the sum over bins of (found - expected) times
    ln(found / expected), as shares. Under 0.1 is stable, from 0.1 moderate, from 0.25 significant.
    """
    if reference.isna().all() or current.isna().all():
        return float("nan")
    counts = _by_decile if pd.api.types.is_numeric_dtype(reference) else _by_category
    expected, found = (
        np.maximum(count / count.sum(), SMALLEST_SHARE)
        for count in counts(reference.dropna(), current)
    )
    return float(np.sum((found - expected) * np.log(found / expected)))


def judge_psi(limits: Monitoring, name: str, value: float, values: int) -> CheckResult:
    """value: nan where window or reference has no value. values: how many the fewer of both has."""
    status: Status = "ok"
    text = f"{name}: PSI {value:.2f}"
    if value >= limits.psi_significant and values < limits.fewest:
        status, text = "remark", f"{text} of {values} values, too few to judge"
    elif value >= limits.psi_significant and name not in limits.monitor_only:
        status = "bad"
    elif value >= limits.psi_moderate and values >= limits.fewest_for_remark:
        status = "remark"
    kind = "prediction_drift" if name in {SCORE, PREDICTED} else "data_drift"
    return CheckResult(
        f"psi_{name}", value, limits.psi_significant, status, text, kind, name
    )


def judge_nulls(
    limits: Monitoring, name: str, before: float, now: float, rows: int
) -> CheckResult:
    """before, now: shares of nulls, nan without rows. Of an empty reference nothing is known."""
    most = before + max(limits.nulls, by_chance(before, rows, limits.standard_errors))
    status: Status = "bad" if now >= most else "ok"
    text = f"{name}: {now:.0%} null, {before:.0%} before"
    if now < 1 and not before < 1:
        status = "unknown"
        text = f"{name}: nothing to compare with, the reference has no value of it"
    return CheckResult(f"nulls_{name}", now, most, status, text, "nulls", name)


def judge_unseen(
    limits: Monitoring, name: str, share: float, kind: str, rows: int
) -> CheckResult:
    """share: of values that the reference has not. kind: new_categories or out_of_range."""
    status: Status = "ok"
    if (
        share >= limits.unseen
        and rows >= limits.fewest
        and name not in limits.monitor_only
    ):
        status = "bad"
    elif share >= limits.unseen_remark:
        status = "remark"
    text = f"{name}: {share:.0%} {UNSEEN[kind]}"
    return CheckResult(f"unseen_{name}", share, limits.unseen, status, text, kind, name)


def judge_mean_score(
    limits: Monitoring, before: float, now: float, spread: float, error: float
) -> CheckResult:
    """before, now: mean scores. spread: standard deviation of the reference's scores.

    error: standard error of the difference (Welch, Biometrika 34, 1947).
    """
    most = max(
        limits.mean_score * max(abs(before), spread), limits.standard_errors * error
    )
    change = f" ({now / before - 1:+.0%})" if before else ""
    text = f"score: mean {now:.3g}, was {before:.3g}{change}"
    status: Status = "bad" if abs(now - before) > most else "ok"
    return CheckResult("mean_score", now, most, status, text, "prediction_drift", SCORE)


def _compare_column(
    limits: Monitoring, name: str, before: "pd.Series[Any]", now: "pd.Series[Any]"
) -> Iterator[CheckResult]:
    before, now = _with_nulls(before), _with_nulls(now)
    values = int(min(before.count(), now.count()))
    yield judge_psi(limits, name, psi(before, now), values)
    yield judge_nulls(limits, name, before.isna().mean(), now.isna().mean(), len(now))
    if not values:
        return
    if name == SCORE:
        error = math.sqrt(
            sum(column.var(ddof=0) / column.count() for column in (before, now))
        )
        yield judge_mean_score(
            limits, before.mean(), now.mean(), before.std(ddof=0), error
        )
    elif before.dtype == object:
        share = _new_categories(limits, before, now)
        yield judge_unseen(limits, name, share, "new_categories", values)
    else:
        share = 1 - now.between(before.min(), before.max()).sum() / now.count()
        yield judge_unseen(limits, name, share, "out_of_range", values)


def _with_nulls(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Of a text, None for the word that a model is given where there is none."""
    return column.mask(column == MISSING, None) if column.dtype == object else column


def _new_categories(
    limits: Monitoring, before: "pd.Series[Any]", now: "pd.Series[Any]"
) -> float:
    """Share that is new, less what was to be expected; 0 as far as chance alone gives that.

    Expected are as many as there were of one row each (Good, Biometrika 40, 1953).
    """
    known, found = before.value_counts(), now.value_counts()
    share = found[~found.index.isin(known.index)].sum() / found.sum()
    usual = (known == 1).sum() / known.sum()
    chance = by_chance(usual, found.sum(), limits.standard_errors)
    return float(share - usual) if share - usual > chance else 0.0


def _by_decile(reference: "pd.Series[Any]", current: "pd.Series[Any]") -> list[Counts]:
    """A value that equals a cut is below it, ties in one bin."""
    numbers = reference.to_numpy(float)
    pair = numbers.min(), numbers.max()
    cuts = np.unique(
        pair if np.isin(numbers, pair).all() else np.quantile(numbers, DECILES)
    )
    columns = (column.to_numpy(float) for column in (reference, current))
    return [
        np.diff([0, *(np.count_nonzero(values <= cut) for cut in (*cuts, np.inf))])
        for values in columns
    ]


def _by_category(
    reference: "pd.Series[Any]", current: "pd.Series[Any]"
) -> list[Counts]:
    counted = (values.value_counts() for values in (reference, current))
    before, now = (counts.groupby(counts.index.astype(str)).sum() for counts in counted)
    # Ties by name.
    before = before.sort_index().sort_values(ascending=False, kind="stable")
    bins = np.arange(len(before))
    if len(before) > BINS:
        ahead = (before.cumsum() - before).to_numpy() / before.sum()
        bins = (BINS * ahead).astype(np.int64)
    found = [
        np.bincount(bins, each.reindex(before.index, fill_value=0), BINS + 1).astype(
            np.int64
        )
        for each in (before, now)
    ]
    rarest = BINS - 1 if len(before) > BINS else BINS
    found[1][rarest] += now.sum() - found[1].sum()
    return found


def _write_report(
    reference: pd.DataFrame, current: pd.DataFrame, significant: float, folder: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Evidently's own, on libraries it uses
        from evidently import DataDefinition, Dataset, Report  # noqa: PLC0415  (5 s)
        from evidently.metrics import MissingValueCount  # noqa: PLC0415
        from evidently.presets import DataDriftPreset  # noqa: PLC0415

        _register()
        before, now = (
            _sample(rows)[list(reference)].apply(_with_nulls)
            for rows in (reference, current)
        )
        text = [name for name in before if before[name].dtype == object]
        numbers = [name for name in before if name not in text]
        shape = DataDefinition(numerical_columns=numbers, categorical_columns=text)
        # Evidently raises on a column without any value; MissingValueCount says it instead.
        filled = [name for name in before if before[name].count() and now[name].count()]
        metrics: list[Any] = [MissingValueCount(column=name) for name in before]
        if filled:
            metrics = [
                DataDriftPreset(filled, method=METHOD, threshold=significant),
                *metrics,
            ]
        frames = (
            Dataset.from_pandas(rows, data_definition=shape) for rows in (now, before)
        )
        report = Report(metrics).run(*frames)
        report.save_html(str(folder / "report.html"))
        report.save_json(str(folder / "report.json"))


def _sample(rows: pd.DataFrame) -> pd.DataFrame:
    # A Generator, as a RandomState would draw them by shuffling all.
    drawn = np.random.default_rng(0)
    return (
        rows if len(rows) <= MOST_ROWS else rows.sample(MOST_ROWS, random_state=drawn)
    )


def _register() -> None:
    from evidently.legacy.calculations import stattests  # noqa: PLC0415
    from evidently.legacy.core import ColumnType  # noqa: PLC0415

    kinds = [ColumnType.Numerical, ColumnType.Categorical]
    test = stattests.StatTest(
        METHOD, "PSI, reference deciles", kinds, default_threshold=0.25
    )

    def figure(
        reference: "pd.Series[Any]",
        current: "pd.Series[Any]",
        _kind: str,
        threshold: float,
    ) -> tuple[float, bool]:
        value = psi(reference, current)
        return value, value >= threshold

    stattests.register_stattest(test, figure)

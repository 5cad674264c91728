"""Evidently: how far a window's features and scores are from the version's own evaluated snapshot.

PSI over reference deciles is registered with Evidently as its drift method, so the figure in its
report is the figure that decides.
"""

from __future__ import annotations

import logging
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring.psi import psi
from monitoring.verdict import by_chance
from stack.spec import MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

log = logging.getLogger(__name__)
METHOD = "psi_reference_deciles"
TESTS = {False: "ks", True: "chisquare"}
"""Of a number and of a text: Evidently's names."""
SCORE = "score"
MOST_ROWS = 100_000
"""Entities that go into Evidently's report: a sample of fixed seed where there are more."""


@dataclass(frozen=True)
class Means:
    """Mean score of the reference and of the window; spread: standard deviation of the reference's
    scores; error: standard error of the difference (Welch, Biometrika 34, 1947).
    """

    before: float
    now: float
    spread: float
    error: float


@dataclass(frozen=True)
class Drift:
    """PSI by column (features and `score`), over all rows; and null shares of the features.

    PSI is nan where the window or the reference has no value. filled: how many there are, in that
    of the two that has fewer. new_categories, out_of_range: share of a text's or a number's values
    that are none of the reference's (beyond chance), outside its range; of the columns that both
    have values of. means: None where one has no score. For information, over the rows of the
    report: p_values (Kolmogorov-Smirnov of numbers, chi-squared of texts), and drifted_share, of
    the columns that both have values of. unreported: why there is no report, if Evidently could
    make none.
    """

    psi: dict[str, float]
    null_share: dict[str, float]
    reference_null_share: dict[str, float]
    filled: dict[str, int] = field(default_factory=dict)
    new_categories: dict[str, float] = field(default_factory=dict)
    out_of_range: dict[str, float] = field(default_factory=dict)
    means: Means | None = None
    p_values: dict[str, float] = field(default_factory=dict)
    drifted_share: float | None = None
    unreported: str | None = None

    def figures(self) -> dict[str, float]:
        """By name, as decisions and MLflow keep them."""
        found = {f"psi_{name}": value for name, value in self.psi.items()}
        found |= {f"p_{name}": value for name, value in self.p_values.items()}
        if self.means is not None:
            found["mean_score"] = self.means.now
        if self.drifted_share is not None:
            found["drifted_share"] = self.drifted_share
        return found


def measure(
    reference: pd.DataFrame, current: pd.DataFrame, folder: Path, significant: float
) -> Drift:
    """Compare columns of `reference`; write Evidently's `report.html` and `report.json`.

    Both frames have these: the features, and `score`; what else `current` has is no matter. What
    Evidently cannot show, such as numbers too close together for a histogram, is judged all the
    same, without the report.
    """
    p_values, drifted_share, unreported = dict[str, float](), None, None
    with ThreadPoolExecutor(1) as beside:  # numpy leaves the lock to Evidently
        found = beside.submit(compared, reference, current)
        before, now = (_sample(rows)[list(reference)].apply(_with_nulls)
                       for rows in (reference, current))  # fmt: skip
        try:
            report = _report(before, now, significant)
            report.save_html(str(folder / "report.html"))
            report.save_json(str(folder / "report.json"))
            p_values, drifted_share = _information(report.dict()["metrics"])
        except Exception as exc:  # whatever it is, what decides is counted without it
            log.warning("Evidently made no report", exc_info=True)
            unreported = " ".join(f"{type(exc).__name__}: {exc}".split())
    return replace(
        found.result(), p_values=p_values, drifted_share=drifted_share, unreported=unreported
    )


def compared(reference: pd.DataFrame, current: pd.DataFrame) -> Drift:
    """What decides, over all rows, without Evidently's report and what it gives for information."""
    found, means = Drift({}, {}, {}), None
    for name in map(str, reference):  # one at a time: a copy of all would not fit beside them
        before, now = (_with_nulls(rows[name]) for rows in (reference, current))
        nulls = [each.isna() for each in (before, now)]
        found.reference_null_share[name], found.null_share[name] = (float(n.mean()) for n in nulls)
        found.filled[name] = int(min((~each).sum() for each in nulls))
        found.psi[name] = psi(before, now)
        if not found.filled[name]:
            continue
        if name == SCORE:
            means = _means(before, now)
        elif before.dtype == object:
            found.new_categories[name] = _new(before, now)
        else:
            found.out_of_range[name] = _outside(before, now)
    return replace(found, means=means)


def _with_nulls(column: pd.Series[Any]) -> pd.Series[Any]:
    """Of a text, None for the word that a model is given where there is none."""
    if column.dtype != object:
        return column
    missing = column == MISSING
    return column.mask(missing, None) if missing.any() else column


def _new(reference: pd.Series[Any], current: pd.Series[Any]) -> float:
    """Share that is new, less what was to be expected: as many as there were of one row each; 0 as
    far as chance alone gives that.

    Source: Good, The population frequencies of species (Biometrika 40, 1953).
    """
    known, found = reference.value_counts(), current.value_counts()
    share = found[~found.index.isin(known.index)].sum() / found.sum()
    usual = (known == 1).sum() / known.sum()
    return float(share - usual) if share - usual > by_chance(usual, found.sum()) else 0.0


def _outside(reference: pd.Series[Any], current: pd.Series[Any]) -> float:
    return float(1 - current.between(reference.min(), reference.max()).sum() / current.count())


def _means(reference: pd.Series[Any], current: pd.Series[Any]) -> Means:
    error = math.sqrt(sum(each.var(ddof=0) / each.count() for each in (reference, current)))
    mean, spread = reference.mean(), reference.std(ddof=0)
    return Means(float(mean), float(current.mean()), float(spread), error)


def _information(metrics: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], float | None]:
    """P-values by column, and the share of drifted columns, out of Evidently's report."""
    p_values, share = dict[str, float](), None
    for metric in metrics:
        config = metric["config"]
        if config.get("method") in TESTS.values():
            p_values[config["column"]] = float(metric["value"])
        elif config["type"].endswith("DriftedColumnsCount"):
            share = float(metric["value"]["share"])
    return p_values, share


def _sample(rows: pd.DataFrame) -> pd.DataFrame:
    # A Generator, as a RandomState would draw them by shuffling all.
    drawn = np.random.default_rng(0)
    return rows if len(rows) <= MOST_ROWS else rows.sample(MOST_ROWS, random_state=drawn)


def _report(reference: pd.DataFrame, current: pd.DataFrame, significant: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Evidently's own, on libraries it uses
        from evidently import DataDefinition, Dataset, Report  # noqa: PLC0415  (5 s)
        from evidently.metrics import (  # noqa: PLC0415
            DriftedColumnsCount,
            MissingValueCount,
            ValueDrift,
        )

        _register()
        text = [name for name in reference if reference[name].dtype == object]
        numbers = [name for name in reference if name not in text]
        # Evidently raises on a column without any value; MissingValueCount says it instead.
        filled = [n for n in reference if reference[n].notna().any() and current[n].notna().any()]
        shape = DataDefinition(numerical_columns=numbers, categorical_columns=text)
        counted = DriftedColumnsCount(columns=filled, method=METHOD, threshold=significant)
        metrics: Sequence[Any] = [
            *([counted] if filled else []),
            *(ValueDrift(column=name, method=TESTS[name in text]) for name in filled),
            *(ValueDrift(column=n, method=METHOD, threshold=significant) for n in filled),
            *(MissingValueCount(column=name) for name in reference),
        ]
        frames = (Dataset.from_pandas(rows, data_definition=shape) for rows in (current, reference))
        return Report(list(metrics)).run(*frames)


def _register() -> None:
    from evidently.legacy.calculations.stattests import (  # noqa: PLC0415
        StatTest,
        register_stattest,
    )
    from evidently.legacy.core import ColumnType  # noqa: PLC0415

    kinds = [ColumnType.Numerical, ColumnType.Categorical]
    test = StatTest(METHOD, "PSI, reference deciles", kinds, default_threshold=0.25)

    def figure(
        reference: pd.Series[Any], current: pd.Series[Any], _kind: str, threshold: float
    ) -> tuple[float, bool]:
        value = psi(reference, current)
        return value, value >= threshold

    register_stattest(test, figure)

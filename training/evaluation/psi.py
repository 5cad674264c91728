"""Population stability index (PSI): how far a column of a window lies from the reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.spec import MISSING
from core.spec.monitoring import Monitoring

Bins: TypeAlias = NDArray[np.integer[Any]]
Floats: TypeAlias = NDArray[np.float64]
DECILES = np.linspace(0.1, 0.9, 9)
CATEGORY_BINS = 10
"""Bins of a text, as many as of a number: with more, the PSI of a small window would be chance."""
SHOWN_CATEGORIES = 4
"""Categories of a bin that are stored: a page names three, and says whether there are more."""
LARGEST = 1e300
"""Larger and infinite numbers count as this one: between two of them no decile can be computed."""
SMALLEST_SHARE = 1e-4
"""Share of an empty bin, as the logarithm of 0 is not finite."""
FEWEST_VALUES = 200
"""Values of a slice: with fewer, its PSI is noise."""
FEWEST_SLICES = 3
NEWEST_SNAPSHOTS = 4
"""Snapshots of the training frame that are compared where the reference is one moment."""
SCORE = "score"
TIME_COLUMN = "event_timestamp"


class BinShares(NamedTuple):
    """The bins that a PSI compares.

    Attributes:
        bins: The cuts between the bins of a number, in order; of a text, the bin of the most frequent
            categories of each bin.
        reference: Share of the reference's values in each bin.
        window: Share of the window's values in each bin.
        parts: What each bin adds to the PSI.
        nulls: Share of rows without a value, in reference and window; no part of the PSI.

    """

    bins: Any
    reference: Floats
    window: Floats
    parts: Floats
    nulls: tuple[float, float]


@dataclass(frozen=True)
class UsualSpread:
    """How far a normal window lies from the reference.

    Attributes:
        basis: The compared slices: `windows` of 24 hours of the reference, each with the others; the
            newest `snapshots` of the training frame, each with the one before; or none: there are
            too few.
        psi: By column the largest PSI of a window, or the smallest of the snapshots.
        mean_score: The largest distance of a window's mean score from the others'.

    """

    basis: Literal["windows", "snapshots", "none"] = "none"
    psi: dict[str, float] = field(default_factory=dict)
    mean_score: float = 0.0

    def wide_features(self, limits: Monitoring) -> dict[str, float]:
        """Return features whose limit is their spread and not the spec's, with the spread."""
        return {
            name: value
            for name, value in self.psi.items()
            if value > limits.psi_significant
            and name != SCORE
            and name not in limits.monitor_only
        }


def psi(reference: "pd.Series[Any]", current: "pd.Series[Any]") -> float:
    """Return the population stability index of `current`.

    It is the sum over bins of (current share - reference share) times the logarithm of their ratio
    (Siddiqi, Credit Risk Scorecards, 2006). Nulls are left out: their share is another figure.

    Args:
        reference: Values that the model was evaluated on.
        current: Values of the window.

    Returns:
        0 if both are distributed alike. From 0.1 a shift is commonly called moderate, from 0.25
        significant. Nan if one of the columns has no value.

    """
    if not (reference.count() and current.count()):
        return math.nan
    return float(bin_shares(reference, current).parts.sum())


def bin_shares(reference: "pd.Series[Any]", current: "pd.Series[Any]") -> BinShares:
    """Return what the PSI is computed from. Both columns have a value."""
    reference_values = reference.dropna()
    current_values = current.dropna()
    bins: Any
    if pd.api.types.is_numeric_dtype(reference):
        bins, reference_bins, current_bins = _bins_by_decile(
            reference_values.to_numpy(float).clip(-LARGEST, LARGEST),
            current_values.to_numpy(float).clip(-LARGEST, LARGEST),
        )
    else:
        bins, reference_bins, current_bins = _bins_by_category(
            reference_values.astype(str), current_values.astype(str)
        )
    bin_count = 1 + max(reference_bins.max(), current_bins.max())
    reference_shares = _shares(reference_bins, bin_count)
    current_shares = _shares(current_bins, bin_count)
    usual = reference_shares.clip(SMALLEST_SHARE)
    actual = current_shares.clip(SMALLEST_SHARE)
    parts = (actual - usual) * np.log(actual / usual)
    nulls = (reference.isna().mean(), current.isna().mean())
    return BinShares(bins, reference_shares, current_shares, parts, nulls)


def usual_spread(
    reference: pd.DataFrame, frame: pd.DataFrame, entity: Sequence[str]
) -> UsualSpread:
    """Measure how far a normal window lies from the reference.

    Windows are the 24 hours of a day (UTC). If the reference has fewer than three, the newest
    snapshots of the training frame take their place. Of their steps the smallest counts: they may
    lie months apart, and a true change between two of them must not hide later drift.

    Args:
        reference: Compared columns, `event_timestamp` and the keys of the evaluated rows.
        frame: The same columns of the training frame's newest snapshots, without `score`.
        entity: Names of the keys. The last row of an entity in a slice counts, as in a window.

    """
    reference_days = _days(reference)
    if len(reference_days) >= FEWEST_SLICES:
        figures = _largest_distances(reference, reference_days, entity)
        return UsualSpread("windows", *figures)
    snapshots = _days(frame)[-NEWEST_SNAPSHOTS:]
    if len(snapshots) >= FEWEST_SLICES:
        columns = frame.drop(columns=[TIME_COLUMN, *entity])
        days = frame[TIME_COLUMN].dt.floor("D")
        return UsualSpread("snapshots", _smallest_steps(columns, days, snapshots))
    return UsualSpread()


def with_nulls(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` with None for the word that a model gets in place of a null text."""
    texts = rows.select_dtypes("object")
    return with_columns(rows, texts.mask(texts == MISSING, None))


def with_columns(rows: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """Replace columns of rows; their names may be any, such as `self`."""
    changed_rows = rows.copy()
    changed_rows[[*columns]] = columns
    return changed_rows


def _days(rows: pd.DataFrame) -> list[pd.Timestamp]:
    """Return the days with enough rows, oldest first."""
    row_counts = rows[TIME_COLUMN].dt.floor("D").value_counts()
    return sorted(row_counts[row_counts >= FEWEST_VALUES].index)


def _largest_distances(
    rows: pd.DataFrame, days: Sequence[pd.Timestamp], entity: Sequence[str]
) -> tuple[dict[str, float], float]:
    """Return the largest PSI of a day by column, and the largest change of the mean score."""
    day_of_row = rows[TIME_COLUMN].dt.floor("D")
    columns = rows.columns.difference([TIME_COLUMN, *entity]).map(str)
    largest_psi = dict.fromkeys(columns, 0.0)
    largest_change = 0.0
    for day in days:
        window = rows[day_of_row == day].drop_duplicates([*entity], keep="last")
        others = rows[(day_of_row != day) & day_of_row.isin(days)]
        for name in columns:
            if window[name].count() >= FEWEST_VALUES:
                distance = psi(others[name], window[name])
                largest_psi[name] = max(largest_psi[name], distance)
        if SCORE in columns and len(window) >= FEWEST_VALUES:
            change = abs(window[SCORE].mean() - others[SCORE].mean())
            largest_change = max(largest_change, float(change))
    return largest_psi, largest_change


def _smallest_steps(
    columns: pd.DataFrame, days: "pd.Series[Any]", snapshots: Sequence[pd.Timestamp]
) -> dict[str, float]:
    """Return by column the smallest PSI of a snapshot against the one before."""
    rows = [columns[days == snapshot] for snapshot in snapshots]
    smallest = dict.fromkeys(map(str, columns), 0.0)
    for name in smallest:
        values = [snapshot[name].dropna() for snapshot in rows]
        if min(map(len, values)) >= FEWEST_VALUES:
            steps = [psi(before, after) for before, after in pairwise(values)]
            smallest[name] = min(steps)
    return smallest


def _bins_by_decile(reference: Floats, current: Floats) -> tuple[Floats, Bins, Bins]:
    """Return the cuts, the reference's deciles, and the bin of each value between them.

    Of only two values each has a bin. Equal deciles are one cut. The end bins are open. A value that
    equals a cut is below it.
    """
    ends = [reference.min(), reference.max()]
    has_two_values = np.isin(reference, ends).all()
    cuts = np.unique(ends if has_two_values else np.quantile(reference, DECILES))
    return cuts, np.searchsorted(cuts, reference), np.searchsorted(cuts, current)


def _bins_by_category(
    reference: "pd.Series[str]", current: "pd.Series[str]"
) -> tuple[Any, Bins, Bins]:
    """Return the bin of the most frequent categories of each bin, and the bin of each value.

    Categories that the reference lacks share one more bin.

    More than ten categories are sorted by frequency, and categories that together make a tenth of
    the reference share a bin. Categories that it lacks are then in the bin of the rarest ones, as
    some are to be expected.
    """
    row_counts = reference.value_counts().sort_index()
    row_counts = row_counts.sort_values(ascending=False, kind="stable")
    if len(row_counts) > CATEGORY_BINS:
        share_before = (row_counts.cumsum() - row_counts) / len(reference)
        bin_of_category = (CATEGORY_BINS * share_before).astype(np.int64)
        bin_of_others = CATEGORY_BINS - 1
    else:
        bin_of_category = pd.Series(np.arange(len(row_counts)), row_counts.index)
        bin_of_others = len(row_counts)
    reference_bins = reference.map(bin_of_category)
    current_bins = current.map(bin_of_category).fillna(bin_of_others).astype(np.int64)
    shown = bin_of_category.groupby(bin_of_category).head(SHOWN_CATEGORIES)
    return shown.to_dict(), reference_bins.to_numpy(), current_bins.to_numpy()


def _shares(bins: Bins, bin_count: int) -> Floats:
    shares: Floats = np.bincount(bins, minlength=bin_count) / len(bins)
    return shares

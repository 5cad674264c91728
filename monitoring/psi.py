"""Population stability index over the deciles of the reference.

Source: Siddiqi, Credit Risk Scorecards (2006): the sum over bins of (found - expected) times
ln(found / expected), as shares. Under 0.1 is stable, from 0.1 moderate, from 0.25 significant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

DECILES = np.linspace(0.1, 0.9, 9)
SMALLEST_SHARE = 1e-4
"""Stands for an empty bin, whose logarithm is not finite."""
BINS = 10
"""Of categories as of deciles: with more, a small window's PSI would be chance's."""
AT_ONCE = 100_000
"""Values that are counted while they lie in a processor's cache."""


def psi(reference: pd.Series[Any], current: pd.Series[Any]) -> float:
    """PSI of `current` against `reference`; nulls are left out, their rate is a check of its own.

    Numbers are cut at the reference's deciles (ties merged, open at both ends), anything else by
    category, what the reference has not in a bin of its own. Of more than ten categories, the most
    frequent first, those that together make a tenth of the reference share a bin, and what it has
    not is with the rarest: some is to be expected. Nan where one of the two has no value.
    """
    counts = _by_decile if pd.api.types.is_numeric_dtype(reference) else _by_category
    before, now = counts(reference.dropna(), current)
    if not (before.sum() and now.sum()):
        return float("nan")
    expected, found = _shares(before), _shares(now)
    return float(np.sum((found - expected) * np.log(found / expected)))


def _by_decile(reference: pd.Series[Any], current: pd.Series[Any]) -> list[Counts]:
    if reference.empty:
        return [np.zeros(1, np.int64)] * 2
    cuts = np.unique(np.quantile(reference.to_numpy(float), DECILES))
    return [_in_bins(values.to_numpy(float), cuts) for values in (reference, current)]


def _in_bins(values: NDArray[np.float64], cuts: NDArray[np.float64]) -> Counts:
    """How many values lie in each bin; one that equals a cut is below it, ties in one bin."""
    up_to = np.zeros(len(cuts) + 1, np.int64)
    for first in range(0, len(values), AT_ONCE):
        some = values[first : first + AT_ONCE]
        known = len(some) - np.count_nonzero(np.isnan(some))
        up_to += [*(np.count_nonzero(some <= cut) for cut in cuts), known]
    return np.diff(up_to, prepend=0)


def _by_category(reference: pd.Series[Any], current: pd.Series[Any]) -> list[Counts]:
    counted = [values.value_counts() for values in (reference, current)]
    before, now = (each.groupby(each.index.astype(str)).sum() for each in counted)
    before = before.sort_index().sort_values(ascending=False, kind="stable")  # ties by name
    bins = np.arange(len(before))
    if len(before) > BINS:
        ahead = (before.cumsum() - before).to_numpy() / before.sum()
        bins = (BINS * ahead).astype(np.int64)
    found = [
        np.bincount(bins, each.reindex(before.index, fill_value=0), BINS + 1).astype(np.int64)
        for each in (before, now)
    ]
    rarest = BINS - 1 if len(before) > BINS else BINS
    found[1][rarest] += now.sum() - found[1].sum()
    return found


def _shares(counts: Counts) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.maximum(counts / counts.sum(), SMALLEST_SHARE)
    return shares

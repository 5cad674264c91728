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


def psi(reference: pd.Series[Any], current: pd.Series[Any]) -> float:
    """PSI of `current` against `reference`; nulls are left out, their rate is a check of its own.

    Numbers are cut at the reference's deciles (ties merged, open at both ends), anything else by
    category. Nan where one of the two has no value.
    """
    reference, current = reference.dropna(), current.dropna()
    if reference.empty or current.empty:
        return float("nan")
    counts = _by_decile if pd.api.types.is_numeric_dtype(reference) else _by_category
    expected, found = (_shares(each) for each in counts(reference, current))
    return float(np.sum((found - expected) * np.log(found / expected)))


def _by_decile(*samples: pd.Series[Any]) -> list[Counts]:
    cuts = np.unique(np.quantile(samples[0].to_numpy(float), DECILES))
    counted: list[Counts] = []
    for values in samples:
        # A value equal to a cut belongs below it, so that a tied value is one bin's alone.
        bins = np.searchsorted(cuts, values.to_numpy(float), side="left")
        counted.append(np.bincount(bins, minlength=len(cuts) + 1).astype(np.int64))
    return counted


def _by_category(*samples: pd.Series[Any]) -> list[Counts]:
    names = sorted({name for values in samples for name in values.astype(str)})
    counted = [values.astype(str).value_counts() for values in samples]
    return [np.asarray(each.reindex(names, fill_value=0), dtype=np.int64) for each in counted]


def _shares(counts: Counts) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.maximum(counts / counts.sum(), SMALLEST_SHARE)
    return shares

"""Do scores mean what they say? Of rows scored 0.7, do seven in ten turn out 1? And of rows
predicted at 50, is 50 the mean?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.metrics import Labels, Scores

BINS = 10


def calibration(y: Labels, p: Scores) -> dict[str, float]:
    """Expected calibration error, and the parts of the mean squared error, over the bins.

    ece: mean of |mean label - mean score| over the bins, weighted by their rows (Naeini et al.
    2015), in the label's unit. Murphy (1973): mean squared error (of probabilities: the Brier
    score) = reliability - resolution + uncertainty, up to what varies within a bin; uncertainty is
    the label's variance. For its mean: ece, reliability and resolution 0, error = uncertainty.
    """
    share, said, seen = bins(y, p)
    return {
        "ece": float(share @ np.abs(seen - said)),
        "reliability": float(share @ (seen - said) ** 2),
        "resolution": float(share @ (seen - y.mean()) ** 2),
        "uncertainty": float(y.var()),
    }


def bins(y: Labels, p: Scores) -> tuple[Scores, Scores, Scores]:
    """Share of the rows, mean score, mean label; float [bins].

    Up to ten bins of about equal size, by score: equal scores lie in one, whatever their order.
    """
    order = np.argsort(p, kind="stable")
    lasts = np.cumsum([len(rows) for rows in np.array_split(order, min(BINS, len(y)))]) - 1
    ends = np.unique(np.searchsorted(p[order], p[order][lasts], side="right"))
    cut = np.split(order, ends[:-1])
    said, seen = (np.array([values[rows].mean() for rows in cut]) for values in (p, y))
    return np.array([len(rows) / len(y) for rows in cut]), said, seen

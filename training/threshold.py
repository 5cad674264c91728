"""From which probability on acting pays: chosen where the test rows play no part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from training.metrics import cost, predict

if TYPE_CHECKING:
    from stack.spec import Costs
    from training.metrics import Labels, Scores

CANDIDATES = np.arange(1, 100) / 100
"""Hundredths: finer ones would follow the noise of the validation rows."""


def cheapest_threshold(y: Labels, p: Scores, costs: Costs, otherwise: float) -> float:
    """The candidate with the smallest cost on these rows; of equals the nearest to `otherwise`."""
    tp, fp = (np.array([predict(p[y == a], at).sum() for at in CANDIDATES]) for a in (1, 0))
    spent = cost(costs, tp, fp, np.sum(y == 1) - tp)
    cheapest = CANDIDATES[np.isclose(spent, spent.min(), rtol=1e-12, atol=0)]
    return float(cheapest[np.argmin(np.abs(cheapest - otherwise))])

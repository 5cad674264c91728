"""The same metrics for each value of one column, and how far apart the values are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.metrics import Scored, all_metrics, predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from stack.spec import Costs
    from training.metrics import Labels


@dataclass(frozen=True)
class Segment:
    """One value of the column: its rows, mean label, mean prediction, and its metrics.

    Of classes the means are shares: prevalence of 1s, selected of predicted 1s.
    """

    value: str
    rows: int
    prevalence: float
    selected: float
    metrics: dict[str, float]


def by_segment(
    column: pd.Series[str], y: Labels, model: Scored, costs: Costs | None
) -> tuple[Segment, ...]:
    """Every value of `column` (one per row), in order; metrics are nan where undefined."""
    found = []
    values = column.to_numpy()
    for value in sorted(set(values)):
        rows = values == value
        mine = Scored(model.scores[rows], model.threshold)
        selected = float(predict(mine.scores, mine.threshold).mean())
        metrics = all_metrics(y[rows], mine, costs)
        found.append(Segment(value, int(rows.sum()), float(y[rows].mean()), selected, metrics))
    return tuple(found)


def fairness(segments: Sequence[Segment]) -> dict[str, float]:
    """Gaps between the largest and the smallest value over segments, 0 for equals; {} for none.

    Of classes, as there are no such shares of numbers.
    demographic_parity_difference: of the share predicted 1 (Dwork et al. 2012).
    equal_opportunity_difference: of the share predicted 1 among the true 1s (Hardt et al. 2016).
    largest_gap: the largest of these two and that of the share predicted 1 among the true 0s, so
    that it holds equalised odds (Hardt et al. 2016) too. A share of no rows does not count.
    """
    if not segments:
        return {}
    parity = _gap([segment.selected for segment in segments])
    opportunity = _gap([_share(segment, "tp", "fn") for segment in segments])
    false_alarms = _gap([_share(segment, "fp", "tn") for segment in segments])
    return {
        "demographic_parity_difference": parity,
        "equal_opportunity_difference": opportunity,
        "largest_gap": max(parity, opportunity, false_alarms),
    }


def _share(segment: Segment, said: str, unsaid: str) -> float:
    rows = segment.metrics[said] + segment.metrics[unsaid]
    return segment.metrics[said] / rows if rows else np.nan


def _gap(shares: Sequence[float]) -> float:
    known = [share for share in shares if not np.isnan(share)]
    return max(known) - min(known) if known else 0.0

"""What a person looks at before believing a number; each figure states rows and test snapshot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay

from training.metrics import log_loss, predict

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.axes import Axes

    from training.metrics import Labels, Scores

CURVES: dict[str, Callable[..., Any]] = {
    "roc": RocCurveDisplay.from_predictions,
    "precision_recall": PrecisionRecallDisplay.from_predictions,
    "calibration": partial(CalibrationDisplay.from_predictions, n_bins=10, strategy="quantile"),
}


def figures(
    y: Labels,
    scored: dict[str, Scores],
    threshold: float,
    importance: dict[str, float],
    title: str,
) -> dict[str, Figure]:
    """File name → figure. scored: the challenger first, then whom it is compared with."""
    made = {}

    def axes_of(name: str) -> Axes:
        figure = made[f"plots/{name}.png"] = Figure(figsize=(6, 5), layout="constrained")
        figure.suptitle(f"{name.replace('_', ' ')} · {title}", fontsize=10)
        return figure.subplots()

    for curve, draw in CURVES.items():
        axes = axes_of(curve)
        for name, scores in scored.items():
            draw(y, scores, name=name, ax=axes)
    classes = predict(next(iter(scored.values())), threshold)
    ConfusionMatrixDisplay.from_predictions(
        y, classes, labels=[0, 1], display_labels=["stays", "churns"],
        colorbar=False, ax=axes_of("confusion_matrix"),
    )  # fmt: skip
    axes, ordered = axes_of("feature_importance"), sorted(importance, key=importance.__getitem__)
    axes.barh(ordered, [importance[name] for name in ordered])
    axes.set(xlabel="rise in log loss when shuffled (nats)")
    return made


def permutation_importance(
    scorer: Callable[[pd.DataFrame], Scores], rows: pd.DataFrame, y: Labels, seed: int
) -> dict[str, float]:
    """By feature, how much log loss rises when its column is shuffled (Breiman 2001)."""
    random, base, rises = np.random.default_rng(seed), log_loss(y, scorer(rows)), {}
    for name in map(str, rows):
        shuffled = rows[name].to_numpy()[random.permutation(len(rows))]
        rises[name] = log_loss(y, scorer(rows.assign(**{name: shuffled}))) - base
    return rises

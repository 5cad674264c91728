"""What a person looks at before believing a number; each figure states rows and test snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    PrecisionRecallDisplay,
    RocCurveDisplay,
    confusion_matrix,
)

from training.metrics import log_loss, predict

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from training.metrics import Labels, Scores

BINS = 10


def figures(
    y: Labels,
    scored: dict[str, Scores],
    threshold: float,
    importance: dict[str, float],
    title: str,
) -> dict[str, Figure]:
    """File name → figure. scored: the challenger first, then whom it is compared with."""
    challenger = next(iter(scored.values()))
    drawn: dict[str, Callable[[Figure], None]] = {
        "confusion_matrix": lambda f: _confusion(f, y, challenger, threshold),
        "roc": lambda f: _curves(f, RocCurveDisplay, y, scored),
        "precision_recall": lambda f: _curves(f, PrecisionRecallDisplay, y, scored),
        "calibration": lambda f: _calibration(f, y, scored),
        "feature_importance": lambda f: _importance(f, importance),
    }
    made = {}
    for name, draw in drawn.items():
        figure = Figure(figsize=(6, 5), layout="constrained")
        draw(figure)
        figure.suptitle(f"{name.replace('_', ' ')} · {title}", fontsize=10)
        made[f"plots/{name}.png"] = figure
    return made


def permutation_importance(
    scorer: Callable[[pd.DataFrame], Scores], rows: pd.DataFrame, y: Labels, seed: int
) -> dict[str, float]:
    """By feature, how much log loss rises when its column is shuffled (Breiman 2001)."""
    random, base = np.random.default_rng(seed), log_loss(y, scorer(rows))
    shuffled = {
        name: rows[name].to_numpy()[random.permutation(len(rows))] for name in map(str, rows)
    }
    return {
        name: log_loss(y, scorer(rows.assign(**{name: column}))) - base
        for name, column in shuffled.items()
    }


def _confusion(figure: Figure, y: Labels, scores: Scores, threshold: float) -> None:
    cells = confusion_matrix(y, predict(scores, threshold), labels=[0, 1])
    axes = figure.subplots()
    ConfusionMatrixDisplay(cells, display_labels=["stays", "churns"]).plot(ax=axes, colorbar=False)


def _curves(figure: Figure, kind: type, y: Labels, scored: dict[str, Scores]) -> None:
    axes = figure.subplots()
    for name, scores in scored.items():
        kind.from_predictions(y, scores, name=name, ax=axes)  # type: ignore[attr-defined]


def _calibration(figure: Figure, y: Labels, scored: dict[str, Scores]) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="grey", label="perfect")
    for name, scores in scored.items():
        observed, predicted = calibration_curve(y, scores, n_bins=BINS, strategy="quantile")
        axes.plot(predicted, observed, "o-", label=name)
    axes.set(xlabel="predicted probability (deciles)", ylabel="observed share")
    axes.legend()


def _importance(figure: Figure, importance: dict[str, float]) -> None:
    axes = figure.subplots()
    ordered = sorted(importance.items(), key=lambda item: item[1])
    axes.barh([name for name, _ in ordered], [value for _, value in ordered])
    axes.set(xlabel="rise in log loss when shuffled (nats)")

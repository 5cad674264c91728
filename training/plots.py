"""What a person looks at before believing a number; each figure states rows and test snapshot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    PrecisionRecallDisplay,
    PredictionErrorDisplay,
    RocCurveDisplay,
)

from training.artifacts import PLOTS
from training.calibration import bins
from training.metrics import predict

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

    from training.metrics import Labels, Scored

CURVES: dict[str, Callable[..., Any]] = {
    "roc": RocCurveDisplay.from_predictions,
    "precision_recall": PrecisionRecallDisplay.from_predictions,
    "calibration": partial(CalibrationDisplay.from_predictions, n_bins=10, strategy="quantile"),
}
SHOWN_ROWS = 2000


def figures(
    y: Labels,
    models: dict[str, Scored],
    importance: dict[str, float],
    title: str,
    loss: str,
) -> dict[str, Figure]:
    """File name → figure. models: the challenger first, then whom it is compared with."""
    made = {}

    def axes_of(name: str) -> Axes:
        figure = made[f"{PLOTS}/{name}.png"] = Figure(figsize=(6, 5), layout="constrained")
        figure.suptitle(f"{name.replace('_', ' ')} · {title}", fontsize=10)
        return figure.subplots()

    challenger = next(iter(models.values()))
    answers = predict(challenger.scores, challenger.threshold)
    if challenger.threshold is None:
        PredictionErrorDisplay.from_predictions(
            y, answers, kind="actual_vs_predicted", subsample=SHOWN_ROWS, random_state=0,
            scatter_kwargs={"alpha": 0.3}, ax=axes_of("predicted_against_actual"),
        )  # fmt: skip
        axes = axes_of("calibration")
        for name, model in models.items():
            axes.plot(*bins(y, model.scores)[1:], "s-", label=name)
        axes.axline((0, 0), slope=1, linestyle=":", color="black", label="as said")
        axes.set(xlabel="mean prediction of each tenth of the rows", ylabel="mean label")
        axes.legend()
    else:
        for curve, draw in CURVES.items():
            axes = axes_of(curve)
            for name, model in models.items():
                draw(y, model.scores, name=name, ax=axes)
        ConfusionMatrixDisplay.from_predictions(
            y, answers, labels=[0, 1], colorbar=False, ax=axes_of("confusion_matrix")
        )
    axes, ordered = axes_of("feature_importance"), sorted(importance, key=importance.__getitem__)
    axes.barh(ordered, [importance[name] for name in ordered])
    axes.set(xlabel=f"rise in {loss.replace('_', ' ')} when shuffled")
    return made

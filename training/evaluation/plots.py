"""Figures of an evaluation: PNG files that the model card shows."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    PrecisionRecallDisplay,
    PredictionErrorDisplay,
    RocCurveDisplay,
)

from core.spec import ModelSpec
from training.evaluation.metrics import Labels, Scored, top_class

draw_calibration = partial(
    CalibrationDisplay.from_predictions, n_bins=10, strategy="quantile"
)


def draw(
    folder: Path,
    title: str,
    spec: ModelSpec,
    y: Labels,
    models: Mapping[str, Scored],
    contributions: Mapping[str, float],
) -> None:
    """Write the figures of the task.

    Args:
        folder: Folder of the files.
        title: Description of the rows that they show.
        spec: The model.
        y: Labels of these rows.
        models: Scores of the challenger, then of the champion if there is one, by name.
        contributions: Mean size of what each feature contributes to a score, the largest first.

    """
    axes_named = partial(_axes, folder, title)
    challenger = next(iter(models.values()))
    with axes_named("feature_importance") as axes:
        axes.barh([*contributions], [*contributions.values()])
        axes.invert_yaxis()
        axes.set(xlabel="mean size of the contribution to the score")
    if not spec.has_labels:
        return
    if spec.task == "regression":
        with axes_named("predicted_against_actual") as axes:
            PredictionErrorDisplay.from_predictions(
                y,
                challenger.predictions,
                kind="actual_vs_predicted",
                subsample=2000,
                random_state=0,
                ax=axes,
            )
        return
    curves: dict[str, Callable[..., Any]] = {"calibration": draw_calibration}
    if spec.task == "classification":
        curves["roc"] = RocCurveDisplay.from_predictions
        curves["precision_recall"] = PrecisionRecallDisplay.from_predictions
    for figure, draw_curve in curves.items():
        with axes_named(figure) as axes:
            for name, model in models.items():
                draw_curve(*top_class(y, model), name=name, ax=axes)
            # The challenger's is wide: an equal one of the champion would hide it.
            axes.lines[-len(models)].set(linewidth=6, alpha=0.4)
    with axes_named("confusion_matrix") as axes:
        classes = spec.classes or ("0", "1")
        ConfusionMatrixDisplay.from_predictions(
            y,
            challenger.predictions,
            labels=range(len(classes)),
            display_labels=classes,
            normalize="true",
            cmap="Blues",
            colorbar=False,
            ax=axes,
        )


@contextmanager
def _axes(folder: Path, title: str, name: str) -> Iterator[Axes]:
    figure = Figure(figsize=(6, 5), layout="constrained")
    figure.suptitle(f"{name.replace('_', ' ')} · {title}", fontsize=10)
    yield figure.subplots()
    figure.savefig(folder / f"{name}.png", dpi=150)

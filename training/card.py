"""One page about one model: what it is for, what was measured, what the gates said, whence it is.

It stands alone: pictures are in it, and no address outside of it is asked for.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from stack.spec import LOWER_IS_BETTER
from training.lineage import LINEAGE, TABLE_TAG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_server.tracking import Run
    from stack.spec import ModelSpec
    from training.gate import Evaluation, Outcome

CARD = "model_card.html"
TEMPLATE = Path(__file__).with_name(CARD)
PICTURES = {
    "predicted_against_actual": "Of 2,000 rows; on the diagonal it was right.",
    "calibration": "Where the line leaves the diagonal, scores do not mean what they say.",
    "confusion_matrix": "At the threshold of this version.",
    "feature_importance": "How much worse the model is when one feature is shuffled.",
}
"""Those that the run has: some are of classes, some of numbers."""
OF_SEGMENT = {
    "classification": ("log_loss", "auc", "precision", "recall", "f1", "cost"),
    "regression": ("rmse", "mae", "r2"),
}


def model_card(
    spec: ModelSpec,
    run: Run,
    evaluation: Evaluation,
    outcomes: Sequence[Outcome],
    plots: Path,
) -> str:
    """HTML of the run's model; `plots` is the folder of the run's figures."""
    template = jinja2.Template(
        TEMPLATE.read_text("utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [
        (name.replace("_", " "), note, b64encode((plots / f"{name}.png").read_bytes()).decode())
        for name, note in PICTURES.items()
        if (plots / f"{name}.png").exists()
    ]
    page: str = template.render(
        spec=spec,
        run=run,
        evaluation=evaluation,
        outcomes=outcomes,
        pictures=pictures,
        lower_is_better=LOWER_IS_BETTER,
        of_segment=OF_SEGMENT[spec.task],
        lineage={name: run.tags[name] for name in (*LINEAGE, "who") if run.tags.get(name)},
        table=run.tags[f"{TABLE_TAG}{spec.dataset}"],
        own={name: value for name, value in run.params.items() if "." in name},
    )
    return page

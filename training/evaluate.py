"""Stage 4: measure challenger, trivial baseline and champion on the newest matured snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlflow_server.registry import Registry
from mlflow_server.served_model import ONNX_FILE
from mlflow_server.tracking import Tracking
from stack.errors import GyreError
from training.artifacts import CANDIDATE, EVALUATION, read
from training.champion import champion_scores
from training.dataset import load_frame
from training.frame import at, features
from training.gate import EVALUATIONS, Evaluation
from training.metrics import all_metrics, paired_difference
from training.plots import figures, permutation_importance
from training.scoring import score

if TYPE_CHECKING:
    import pyarrow as pa

    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.metrics import Labels, Scores


def evaluate(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Store metrics (plain, `trivial_…`, `champion_…`), plots and `evaluation.json` in the run.

    Trivial is the best constant: the prevalence of the test rows, which no model can know.
    """
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, run_id)
    rows = at(frame, [plan.test])
    y, inputs = rows["label"].to_numpy(), features(spec, rows)
    model = read(tracking, run_id, f"{CANDIDATE}/{ONNX_FILE}")
    scores = score(model, spec.features, inputs)
    version = Registry(settings).production(spec.name)
    champion, unavailable = _champion(settings, spec, version, rows)
    evaluation = compare(spec, y, scores, champion, version, unavailable)
    tracking.log_metrics(run_id, _named(evaluation))
    tracking.log_json(run_id, EVALUATIONS.dump_python(evaluation, mode="json"), EVALUATION)
    scored = {"challenger": scores}
    if champion is not None:
        scored[f"version {version} (champion)"] = champion
    importance = permutation_importance(
        lambda shuffled: score(model, spec.features, shuffled), inputs, y, spec.seed
    )
    title = f"{len(y):,} customers at {plan.test:%Y-%m-%d}"
    for path, figure in figures(y, scored, spec.threshold, importance, title).items():
        tracking.log_figure(run_id, figure, path)


def compare(
    spec: ModelSpec,
    y: Labels,
    scores: Scores,
    champion: Scores | None,
    version: str | None,
    unavailable: str | None = None,
) -> Evaluation:
    """Measure all three on the same rows, and the differences that gates ask for."""
    constant = np.full(len(y), float(np.mean(y)))
    asked: set[str] = {gate.metric for gate in spec.gates if gate.rule == "not_worse_than_champion"}
    differences = {} if champion is None else {
        name: paired_difference(name, y, scores, champion, spec.threshold, spec.seed)
        for name in sorted(asked)
    }  # fmt: skip
    return Evaluation(
        rows=len(y),
        challenger=all_metrics(y, scores, spec.threshold),
        trivial=all_metrics(y, constant, spec.threshold),
        champion_version=version,
        champion={} if champion is None else all_metrics(y, champion, spec.threshold),
        differences=differences,
        unavailable=unavailable,
    )


def _champion(
    settings: Settings, spec: ModelSpec, version: str | None, rows: pa.Table
) -> tuple[Scores | None, str | None]:
    if version is None:
        return None, None
    try:
        return champion_scores(settings, spec, version, rows), None
    except GyreError as exc:
        return None, str(exc)


def _named(evaluation: Evaluation) -> dict[str, float]:
    named = dict(evaluation.challenger)
    named |= {f"trivial_{name}": value for name, value in evaluation.trivial.items()}
    named |= {f"champion_{name}": value for name, value in evaluation.champion.items()}
    for name, difference in evaluation.differences.items():
        named[f"{name}_minus_champion"] = difference.value
        named[f"{name}_minus_champion_upper"] = difference.high
    return named

"""Stage 3: choose an estimator on forward folds, fit it, convert it to what will be served."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import skops.io
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from mlflow_server.served_model import ONNX_FILE
from mlflow_server.tracking import Tracking
from training.artifacts import CANDIDATE, PIPELINE_FILE
from training.dataset import load_frame
from training.frame import at, features
from training.onnx_export import build_pipeline, export

if TYPE_CHECKING:
    import pyarrow as pa
    from sklearn.pipeline import Pipeline

    from stack.settings import Settings
    from stack.spec import Estimator, ModelSpec
    from training.snapshots import Plan

log = logging.getLogger(__name__)


def fit(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Fit the best estimator on the training snapshots; store pipeline and ONNX in the run."""
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, run_id)
    scores = {estimator.name: fold_scores(spec, estimator, frame, plan)
              for estimator in spec.estimators} if plan.folds else {}  # fmt: skip
    chosen = choose(spec, scores)
    means = ", ".join(f"{name} {np.mean(values):.4f}" for name, values in scores.items())
    log.info("%s of %s", chosen.name, means or "no forward fold yet: the spec's first estimator")
    pipeline = fit_pipeline(spec, chosen, at(frame, plan.train))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        skops.io.dump(pipeline, folder / PIPELINE_FILE)
        model = export(pipeline, spec.features)
        (folder / ONNX_FILE).write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(folder / ONNX_FILE))
        for file in sorted(folder.iterdir()):
            tracking.log_artifact(run_id, file, CANDIDATE)
    tracking.log_params(
        run_id,
        {
            "estimator": chosen.name,
            "chosen_by": "forward folds, log loss" if scores else "first of the spec: no folds",
            "seed": spec.seed,
            **{f"{chosen.type}.{key}": value for key, value in chosen.parameters.items()},
        },
    )
    tracking.log_metrics(
        run_id, {f"fold_log_loss_{name}": float(np.mean(s)) for name, s in scores.items()}
    )


def choose(spec: ModelSpec, scores: dict[str, list[float]]) -> Estimator:
    """Pick the estimator with the smallest mean log loss; without folds, the spec's first."""
    if not scores:
        return spec.estimators[0]
    return min(spec.estimators, key=lambda estimator: float(np.mean(scores[estimator.name])))


def fold_scores(spec: ModelSpec, estimator: Estimator, frame: pa.Table, plan: Plan) -> list[float]:
    """Log loss on the validation snapshot of each forward fold."""
    scores = []
    for fold in plan.folds:
        pipeline = fit_pipeline(spec, estimator, at(frame, fold.train))
        rows = at(frame, [fold.validation])
        predicted = pipeline.predict_proba(features(spec, rows))[:, 1]
        scores.append(float(log_loss(rows["label"].to_numpy(), predicted, labels=[0, 1])))
    return scores


def fit_pipeline(spec: ModelSpec, estimator: Estimator, rows: pa.Table) -> Pipeline:
    """Fit on the rows of a frame.

    Boosting's own threads wait for each other: on two busy cores one thread is twice as fast.
    """
    pipeline = build_pipeline(estimator.type, estimator.parameters, spec.features, spec.seed)
    with threadpool_limits(1):
        return pipeline.fit(features(spec, rows), rows["label"].to_numpy())

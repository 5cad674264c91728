"""Stage 3: choose an estimator on forward folds, fit it, convert it to what will be served."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import skops.io
from threadpoolctl import threadpool_limits

from mlflow_server.served_model import ONNX_FILE
from mlflow_server.tracking import Tracking
from training.artifacts import CANDIDATE, PIPELINE_FILE
from training.dataset import load_frame
from training.frame import at, features
from training.metrics import log_loss
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
    losses = {estimator.name: fold_loss(spec, estimator, frame, plan)
              for estimator in spec.estimators} if plan.folds else {}  # fmt: skip
    # The smallest mean log loss; without folds, the spec's first.
    chosen = min(spec.estimators, key=lambda estimator: losses.get(estimator.name, 0.0))
    means = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    log.info("%s of %s", chosen.name, means or "no forward fold yet: the spec's first estimator")
    pipeline = fit_pipeline(spec, chosen, at(frame, plan.train))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        skops.io.dump(pipeline, folder / PIPELINE_FILE)
        model = export(pipeline, spec.features)
        (folder / ONNX_FILE).write_bytes(model.SerializeToString(deterministic=True))
        for file in sorted(folder.iterdir()):
            tracking.log_artifact(run_id, file, CANDIDATE)
    tracking.log(
        run_id,
        metrics={f"fold_log_loss_{name}": loss for name, loss in losses.items()},
        params={
            "estimator": chosen.name,
            "chosen_by": "forward folds, log loss" if losses else "first of the spec: no folds",
            "seed": spec.seed,
            **{f"{chosen.type}.{key}": value for key, value in chosen.parameters.items()},
        },
    )


def fold_loss(spec: ModelSpec, estimator: Estimator, frame: pa.Table, plan: Plan) -> float:
    """Mean log loss on the validation snapshots of the forward folds."""
    losses = []
    for fold in plan.folds:
        pipeline = fit_pipeline(spec, estimator, at(frame, fold.train))
        rows = at(frame, [fold.validation])
        predicted = pipeline.predict_proba(features(spec, rows))[:, 1]
        losses.append(log_loss(rows["label"].to_numpy(), predicted))
    return float(np.mean(losses))


def fit_pipeline(spec: ModelSpec, estimator: Estimator, rows: pa.Table) -> Pipeline:
    """Fit on the rows of a frame.

    Boosting's own threads wait for each other: on two busy cores one thread is twice as fast.
    """
    pipeline = build_pipeline(estimator.type, estimator.parameters, spec.features, spec.seed)
    with threadpool_limits(1):
        return pipeline.fit(features(spec, rows), rows["label"].to_numpy())

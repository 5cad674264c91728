"""Stage 3: choose an estimator on forward folds, fit it, convert it to what will be served."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import skops.io
from threadpoolctl import threadpool_limits

from mlflow_server.served_model import ONNX_FILE
from mlflow_server.tracking import Tracking
from stack.errors import TrainingError
from training.artifacts import CANDIDATE, ESTIMATOR, PIPELINE_FILE
from training.dataset import load_frame
from training.frame import at, features
from training.metrics import LOSSES
from training.onnx_export import build_pipeline, export, pipeline_scores
from training.threshold import cheapest_threshold

if TYPE_CHECKING:
    import pyarrow as pa
    from sklearn.pipeline import Pipeline

    from stack.settings import Settings
    from stack.spec import Estimator, ModelSpec
    from training.metrics import Labels, Scores
    from training.snapshots import Fold, Plan

log = logging.getLogger(__name__)


def fit(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Fit the best estimator on the training snapshots; store pipeline and ONNX in the run."""
    tracking = Tracking(settings)
    if "chosen_by" in tracking.run(run_id).params:  # written last: another search may end otherwise
        return
    frame, plan = load_frame(tracking, run_id)
    plan = with_usable_folds(frame, plan)
    chosen, losses, how = choose(tracking, spec, run_id, frame, plan)
    means = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    log.info("%s by %s%s", chosen.name, how, f": {means}" if means else "")
    threshold = choose_threshold(spec, chosen, frame, plan)
    judged = {} if threshold is None else {
        "threshold": threshold,
        "threshold_by": "cost on the newest fold" if plan.folds else "the spec: no folds",
    }  # fmt: skip
    pipeline = fit_pipeline(spec, chosen, at(frame, plan.train))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        skops.io.dump(pipeline, folder / PIPELINE_FILE)
        model = export(pipeline, spec.features)
        (folder / ONNX_FILE).write_bytes(model.SerializeToString(deterministic=True))
        for file in sorted(folder.iterdir()):
            tracking.log_artifact(run_id, file, CANDIDATE)
    tracking.log_json(run_id, chosen.model_dump(mode="json"), ESTIMATOR)
    tracking.log(
        run_id,
        metrics={f"fold_{spec.loss}_{name}": loss for name, loss in losses.items()},
        params={
            "estimator": chosen.name,
            "chosen_by": how,
            **judged,
            "seed": spec.seed,
            **{f"{chosen.type}.{key}": value for key, value in chosen.parameters.items()},
        },
    )


def with_usable_folds(frame: pa.Table, plan: Plan) -> Plan:
    """Without folds that have nobody to judge by, or nothing to tell apart."""
    usable = [
        fold for fold in plan.folds
        if at(frame, [fold.validation]).num_rows
        and pc.count_distinct(at(frame, fold.train)["label"]).as_py() > 1
    ]  # fmt: skip
    return replace(plan, folds=tuple(usable))


def choose(
    tracking: Tracking, spec: ModelSpec, run_id: str, frame: pa.Table, plan: Plan
) -> tuple[Estimator, dict[str, float], str]:
    """Return the estimator to fit, the mean loss of each one's best, and how it was chosen."""
    loss_name = spec.loss.replace("_", " ")
    if not plan.folds:
        needed = "; a search needs forward folds" if spec.search else ""
        return spec.estimators[0], {}, f"first of the spec: no folds{needed}"
    if spec.search:
        from training.search import search

        def loss_of(estimator: Estimator) -> float:
            return fold_loss(spec, estimator, frame, plan)

        trials = search(tracking, spec, spec.search, run_id, loss_of)
        how = f"search of {len(trials)} trials on forward folds, {loss_name}"
    else:
        trials = [(fold_loss(spec, each, frame, plan), each) for each in spec.estimators]
        how = f"forward folds, {loss_name}"
    best: dict[str, float] = {}
    for loss, each in trials:
        best[each.name] = min(loss, best.get(each.name, loss))
    return min(trials, key=lambda trial: trial[0])[1], best, how


def choose_threshold(
    spec: ModelSpec, chosen: Estimator, frame: pa.Table, plan: Plan
) -> float | None:
    """Return the cheapest threshold on the newest fold's validation rows; without, the spec's.

    None where a number is predicted.
    """
    if not plan.folds or spec.threshold is None or spec.costs is None:
        return spec.threshold
    validation = fold_scores(spec, chosen, frame, plan.folds[-1])
    return cheapest_threshold(*validation, spec.costs, spec.threshold)


def fold_loss(spec: ModelSpec, estimator: Estimator, frame: pa.Table, plan: Plan) -> float:
    """Mean of the task's loss on the validation snapshots of the forward folds."""
    folds = [fold_scores(spec, estimator, frame, fold) for fold in plan.folds]
    return float(np.mean([LOSSES[spec.loss](y, scores) for y, scores in folds]))


def fold_scores(
    spec: ModelSpec, estimator: Estimator, frame: pa.Table, fold: Fold
) -> tuple[Labels, Scores]:
    """Labels and scores of the fold's validation rows, fitted on its training rows."""
    pipeline = fit_pipeline(spec, estimator, at(frame, fold.train))
    rows = at(frame, [fold.validation])
    return rows["label"].to_numpy(), pipeline_scores(pipeline, features(spec, rows))


def fit_pipeline(spec: ModelSpec, estimator: Estimator, rows: pa.Table) -> Pipeline:
    """Fit on the rows of a frame.

    Boosting's own threads wait for each other: on two busy cores one thread is twice as fast.

    Raises:
        TrainingError: the labels are all the same, or scikit-learn refuses the parameters.

    """
    y = rows["label"].to_numpy()
    if len(np.unique(y)) < 2:  # noqa: PLR2004  (of a fold: the whole frame has been looked at)
        raise TrainingError(f"{spec.name}: every label of {len(y)} training rows is the same")
    try:
        pipeline = build_pipeline(
            estimator.type, estimator.parameters, spec.features, spec.seed, spec.task
        )
        with threadpool_limits(1):
            return pipeline.fit(features(spec, rows), y)
    except (ValueError, TypeError) as exc:
        reason = " ".join(str(exc).split())
        raise TrainingError(f"{spec.name}: estimator {estimator.name}: {reason}") from exc

"""Stage 3: choose an estimator on forward folds, fit it, export it as what will be served.

Or let `[training] function` choose and fit; what is around it stays the same.
"""

import logging
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import skops.io
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from core.settings import Settings
from core.spec import MISSING, ModelSpec
from core.training_spec import Costs, Estimator
from core.user_code import load_object
from feature_repo.lookup_writer import look_up_specification
from mlflow_server.pyfunc import ModelFile
from mlflow_server.served_model import CONTRACT_FILE, ServedModel
from mlflow_server.tracking import Tracking
from training.artifacts import CANDIDATE, ESTIMATOR, PIPELINE_FILE, PROOF
from training.dataset import load_frame
from training.estimators import ANSWERS, build_pipeline, reason, require
from training.frame import at, features
from training.metrics import LOSSES, Labels, Scores, cost, predict
from training.onnx_export import exported, pipeline_scores, prove
from training.snapshots import Fold, Plan, Snapshot

log = logging.getLogger(__name__)
THRESHOLDS = np.arange(1, 100) / 100
"""Hundredths: finer ones would follow the noise of the validation rows."""
BACKGROUND = 20
"""Training rows that a prediction is explained against."""


def fit(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Fit the best estimator on the training snapshots; store the model's files in the run.

    What is served is compared with what was fitted here; a gate refuses one that differs.
    """
    tracking = Tracking(settings)
    run = tracking.run(run_id)
    if "chosen_by" in run.params:  # written last: another search may end otherwise
        return
    frame, plan = load_frame(tracking, run_id)
    plan = with_usable_folds(frame, plan)
    chosen, losses, how = choose(tracking, spec, run_id, frame, plan)
    means = "".join(f"; {name} {loss:.4f}" for name, loss in losses.items())
    log.info("%s by %s%s", chosen.name, how, means)
    params = {"estimator": chosen.name, "chosen_by": how, "seed": spec.seed}
    params |= {
        f"{chosen.type}.{key}": value for key, value in chosen.parameters.items()
    }
    model, threshold, figures = train_model(spec, chosen, frame, plan)
    if threshold is not None:
        by_cost = "cost on the newest fold" if plan.folds else "the spec: no folds"
        params["threshold"] = threshold
        params["threshold_by"] = (
            "its figures, or the spec" if spec.training else by_cost
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = at(frame, plan.train)
        as_of = run.tags["as_of"]
        served = write_model(settings, spec, model, train, threshold, as_of, folder)
        tracking.log_artifacts(run_id, folder, CANDIDATE)
    every, types = features(spec, frame), spec.inputs
    proof = prove(model, served, every, spec.seed, features=types, threshold=threshold)
    tracking.log_json(run_id, asdict(proof) | {"passed": proof.passed}, PROOF)
    tracking.log_json(run_id, chosen.model_dump(mode="json"), ESTIMATOR)
    losses = {f"fold_{spec.loss}_{name}": loss for name, loss in losses.items()}
    tracking.log(run_id, metrics=losses | figures, params=params)


def train_model(
    spec: ModelSpec, chosen: Estimator, frame: pa.Table, plan: Plan
) -> tuple[Any, float | None, dict[str, float]]:
    """Fit on the training snapshots; return the model, its threshold, and figures of own code.

    `[training] function` takes a frame (features in order, and label; its index has the keys and
    event_timestamp), of each forward fold two such frames, for training and for validation, and
    the spec's parameters with its seed and features. It returns a model over a frame of features,
    and figures by name, of which `threshold` is served with in place of the spec's.
    """
    if not spec.training:
        threshold = choose_threshold(spec, chosen, frame, plan)
        return fit_pipeline(spec, chosen, at(frame, plan.train)), threshold, {}

    def rows(*snapshots: Snapshot) -> pd.DataFrame:
        found = at(frame, snapshots)
        keys = found.select([*spec.entity_key, "event_timestamp"]).to_pandas()
        rows = features(spec, found).assign(label=found["label"].to_numpy())
        return rows.set_index([keys[name] for name in keys])

    folds = [(rows(*fold.train), rows(*fold.validation)) for fold in plan.folds]
    try:
        function = load_object(chosen.type)
        parameters = {"seed": spec.seed, "features": spec.inputs, **chosen.parameters}
        model, figures = function(rows(*plan.train), folds, parameters)
        require(model, ANSWERS[spec.task])
        figures = {f"training_{name}": float(value) for name, value in figures.items()}
    except Exception as exc:
        raise TrainingError(
            f"{spec.name}: [training] {chosen.type}: {reason(exc)}"
        ) from exc
    threshold = spec.threshold and figures.get("training_threshold", spec.threshold)
    return model, threshold, figures


def write_model(
    settings: Settings,
    spec: ModelSpec,
    model: Any,
    train: pa.Table,
    threshold: float | None,
    as_of: str,
    folder: Path,
) -> ModelFile:
    """Write what was fitted on the rows `train`: as skops, as served, the contract."""
    try:
        skops.io.dump(model, folder / PIPELINE_FILE)
    except Exception as exc:  # noqa: BLE001  (for people to look at: it is not served)
        log.warning("%s: no %s: %s", spec.name, PIPELINE_FILE, reason(exc))
    served = exported(model, spec)
    rows = features(spec, train)
    background = min(BACKGROUND, len(rows))
    contract = ServedModel(
        model=spec.name,
        loader=served.write(folder),
        entity_key=spec.entity_key,
        feature_service=spec.feature_service,
        features=spec.features,
        defaults={
            name: _default(rows[name], kind) for name, kind in spec.inputs.items()
        },
        background=tuple(
            rows.sample(background, random_state=spec.seed).to_dict("records")
        ),
        nullable=tuple(
            n for n in spec.features if (rows[n].isna() | (rows[n] == MISSING)).any()
        ),
        population=spec.population,
        threshold=threshold,
        classes=spec.classes,
        as_of=as_of,
        lookup=look_up_specification(settings, spec.feature_service),
    )
    (folder / CONTRACT_FILE).write_text(contract.model_dump_json(indent=2))
    return served


def _default(column: "pd.Series[Any]", kind: str) -> int | float | str:
    if kind == "string":
        return str(column.mode()[0])
    return int(column.median()) if kind == "int64" else float(column.median())


def with_usable_folds(frame: pa.Table, plan: Plan) -> Plan:
    """Without folds that have nobody to judge by, or nothing to tell apart: of classes, each."""
    labels = at(frame, plan.train)["label"]
    fewest = max(2, pc.count_distinct(labels).as_py()) if labels.type == "int64" else 2
    usable = (
        fold
        for fold in plan.folds
        if at(frame, fold.validation).num_rows
        and pc.count_distinct(at(frame, fold.train)["label"]).as_py() >= fewest
    )
    return replace(plan, folds=tuple(usable))


def choose(
    tracking: Tracking, spec: ModelSpec, run_id: str, frame: pa.Table, plan: Plan
) -> tuple[Estimator, dict[str, float], str]:
    """Return the estimator to fit, the mean loss of each one's best, and how it was chosen."""
    if own := spec.training:
        chosen = Estimator(
            name=own.function, type=own.function, parameters=own.parameters
        )
        return chosen, {}, "training code of its own"
    loss_name = spec.loss.replace("_", " ")
    if not plan.folds:
        needed = "; a search needs forward folds" if spec.search else ""
        return spec.estimators[0], {}, f"first of the spec: no folds{needed}"
    if spec.search:
        from training.search import search

        loss_of = partial(fold_loss, spec, frame=frame, plan=plan)
        trials = search(tracking, spec, spec.search, run_id, loss_of)
        how = f"search of {len(trials)} trials on forward folds, {loss_name}"
    else:
        trials = [
            (fold_loss(spec, each, frame, plan), each) for each in spec.estimators
        ]
        how = f"forward folds, {loss_name}"
    best: dict[str, float] = {}
    for loss, each in trials:
        best[each.name] = min(loss, best.get(each.name, loss))
    return min(trials, key=lambda trial: trial[0])[1], best, how


def choose_threshold(
    spec: ModelSpec, chosen: Estimator, frame: pa.Table, plan: Plan
) -> float | None:
    """The cheapest threshold on the newest fold's validation rows; without folds the spec's.

    None where none is needed.
    """
    if not plan.folds or spec.threshold is None or spec.costs is None:
        return spec.threshold
    validation = fold_scores(spec, chosen, frame, plan.folds[-1])
    return cheapest_threshold(*validation, spec.costs, spec.threshold)


def cheapest_threshold(y: Labels, p: Scores, costs: Costs, otherwise: float) -> float:
    """The threshold with the smallest cost on these rows; of equals the nearest to `otherwise`."""
    tp = np.array([predict(p[y == 1], at).sum() for at in THRESHOLDS])
    fp = np.array([predict(p[y == 0], at).sum() for at in THRESHOLDS])
    spent = cost(costs, tp, fp, np.sum(y == 1) - tp)
    cheapest = THRESHOLDS[np.isclose(spent, spent.min(), rtol=1e-12, atol=0)]
    return float(cheapest[np.argmin(np.abs(cheapest - otherwise))])


def fold_loss(
    spec: ModelSpec, estimator: Estimator, frame: pa.Table, plan: Plan
) -> float:
    """Mean of the task's loss on the validation snapshots of the forward folds."""
    folds = [fold_scores(spec, estimator, frame, fold) for fold in plan.folds]
    return float(np.mean([LOSSES[spec.loss](y, scores) for y, scores in folds]))


def fold_scores(
    spec: ModelSpec, estimator: Estimator, frame: pa.Table, fold: Fold
) -> tuple[Labels, Scores]:
    """Labels and scores of the fold's validation rows, fitted on its training rows."""
    pipeline = fit_pipeline(spec, estimator, at(frame, fold.train))
    rows = at(frame, fold.validation)
    return rows["label"].to_numpy(), pipeline_scores(pipeline, features(spec, rows))


def fit_pipeline(spec: ModelSpec, estimator: Estimator, rows: pa.Table) -> Any:
    """Fit on the rows of a frame."""
    y = rows["label"].to_numpy()
    if len(np.unique(y)) < 2:  # noqa: PLR2004  (of a fold: the whole frame has been looked at)
        raise TrainingError(
            f"{spec.name}: every label of {len(y)} training rows is the same"
        )
    try:
        pipeline = build_pipeline(
            estimator.type, estimator.parameters, spec.inputs, spec.seed, spec.task
        )
        # Boosting's threads wait for each other on busy cores.
        with threadpool_limits(1):
            pipeline.fit(features(spec, rows), y)
    except Exception as exc:
        raise TrainingError(
            f"{spec.name}: estimator {estimator.name}: {reason(exc)}"
        ) from exc
    return pipeline

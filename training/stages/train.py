"""Stage 3, train: choose an estimator, fit it, write the served model, prove that both score the same.

An estimator is chosen by its loss on forward folds, a threshold by the costs on the newest fold. Or
`[training] function` chooses and fits; all other steps stay the same.
"""

import logging
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from core.settings import Settings
from core.spec import MISSING, ModelSpec
from core.spec.training import Costs, Estimator
from core.user_code import load_object
from feature_repo.published.specification import look_up_specification
from mlflow_server.api.tracking import Tracking
from mlflow_server.manifest import CONTRACT_FILE, ModelManifest
from mlflow_server.model.pyfunc import ModelFile
from training.artifacts import CANDIDATE, ESTIMATOR, PROOF
from training.data.frame import feature_columns, snapshot_rows
from training.data.snapshots import Fold, Plan, Snapshot
from training.evaluation.metrics import (
    Labels,
    Scored,
    Scores,
    all_metrics,
    cost,
    predict,
)
from training.model.estimators import (
    SCORE_METHODS,
    build_pipeline,
    error_line,
    require_methods,
)
from training.model.proof import Proof, pipeline_scores, served_form
from training.stages.dataset import load_frame

log = logging.getLogger(__name__)
THRESHOLDS = np.arange(1, 100) / 100
"""Hundredths: finer ones would follow the noise of the validation rows."""
BACKGROUND_ROWS = 20
"""Training rows that a prediction is explained against."""


def fit(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Fit the best estimator on the training snapshots; store the model's files in the run.

    A gate refuses a model whose proof failed.
    """
    tracking = Tracking(settings)
    run = tracking.run(run_id)
    if "chosen_by" in run.params:  # written last: another search may end otherwise
        return
    frame, plan = load_frame(tracking, run_id)
    plan = with_usable_folds(frame, plan)
    chosen, candidates, chosen_by = choose(tracking, spec, run_id, frame, plan)
    mean_losses = [
        f"{name} {metrics[spec.loss]:.4f}" for name, metrics in candidates.items()
    ]
    log.info("chosen: %s", "; ".join([chosen.name, chosen_by, *mean_losses]))
    model, threshold, figures = train_model(spec, chosen, frame, plan)
    served, proof = served_file(spec, model, threshold, frame, plan)
    with tempfile.TemporaryDirectory() as name:
        train_rows = snapshot_rows(frame, plan.train)
        as_of = run.tags["as_of"]
        folder = Path(name)
        write_model(settings, spec, served, train_rows, threshold, as_of, folder)
        tracking.log_artifacts(run_id, name, CANDIDATE)
    tracking.log_dict(run_id, asdict(proof), PROOF)
    tracking.log_dict(run_id, chosen.model_dump(mode="json"), ESTIMATOR)
    params = {"estimator": chosen.name, "chosen_by": chosen_by, "seed": spec.seed}
    for name, value in chosen.parameters.items():
        params[f"{chosen.type}.{name}"] = value
    if threshold is not None:
        by_cost = "cost on the newest fold" if plan.folds else "the spec: no folds"
        params["threshold"] = threshold
        params["threshold_by"] = (
            "its figures, or the spec" if spec.training else by_cost
        )
    for name, metrics in candidates.items():
        for metric, value in metrics.items():
            figures[f"fold/{metric}_{name}"] = value
    tracking.log(run_id, metrics=figures, params=params)


def with_usable_folds(frame: pa.Table, plan: Plan) -> Plan:
    """Leave out folds without rows to judge by, or without a class that the training rows have."""
    labels = snapshot_rows(frame, plan.train)["label"]
    fewest_labels = 2
    if labels.type == "int64":  # each class
        fewest_labels = max(2, pc.count_distinct(labels).as_py())
    folds = []
    for fold in plan.folds:
        label_count = pc.count_distinct(
            snapshot_rows(frame, fold.train)["label"]
        ).as_py()
        if (
            snapshot_rows(frame, fold.validation).num_rows
            and label_count >= fewest_labels
        ):
            folds.append(fold)
    return replace(plan, folds=tuple(folds))


def choose(
    tracking: Tracking, spec: ModelSpec, run_id: str, frame: pa.Table, plan: Plan
) -> tuple[Estimator, dict[str, dict[str, float]], str]:
    """Return the estimator to fit, the best metrics of each estimator, and how it was chosen."""
    if spec.training:
        function = spec.training.function
        parameters = spec.training.parameters
        chosen = Estimator(name=function, type=function, parameters=parameters)
        return chosen, {}, "training code of its own"
    if not plan.folds:
        remark = "; a search needs forward folds" if spec.search else ""
        return spec.estimators[0], {}, f"first of the spec: no folds{remark}"
    chosen_by = f"forward folds, {spec.loss.replace('_', ' ')}"
    if spec.search:
        from training.model.search import search  # Optuna takes 0.5 s

        metrics_of = partial(fold_metrics, spec, frame=frame, plan=plan)
        trials = search(tracking, spec, spec.search, run_id, metrics_of)
        chosen_by = f"search of {len(trials)} trials on {chosen_by}"
    else:
        trials = [
            (fold_metrics(spec, estimator, frame, plan), estimator)
            for estimator in spec.estimators
        ]
    trials.sort(key=lambda trial: trial[0][spec.loss])
    best_metrics: dict[str, dict[str, float]] = {}
    for metrics, estimator in trials:
        best_metrics.setdefault(estimator.name, metrics)
    return trials[0][1], best_metrics, chosen_by


def fold_metrics(
    spec: ModelSpec, estimator: Estimator, frame: pa.Table, plan: Plan
) -> dict[str, float]:
    """Return the means of the loss and the gates' metrics on the forward folds' validation rows."""
    names = {spec.loss, *(gate.metric for gate in spec.gates)}
    values = defaultdict(list)
    for fold in plan.folds:
        y, scores = fold_scores(spec, estimator, frame, fold)
        metrics = all_metrics(y, Scored(scores, spec.threshold), costs=None)
        # Without costs: they follow from the threshold, which is chosen later.
        for name in names & metrics.keys():
            values[name].append(metrics[name])
    return {name: float(np.mean(values[name])) for name in sorted(values)}


def fold_scores(
    spec: ModelSpec, estimator: Estimator, frame: pa.Table, fold: Fold
) -> tuple[Labels, Scores]:
    """Return labels and scores of the fold's validation rows, fitted on its training rows."""
    pipeline = fit_pipeline(spec, estimator, snapshot_rows(frame, fold.train))
    rows = snapshot_rows(frame, fold.validation)
    return rows["label"].to_numpy(), pipeline_scores(
        pipeline, feature_columns(spec, rows)
    )


def train_model(
    spec: ModelSpec, chosen: Estimator, frame: pa.Table, plan: Plan
) -> tuple[Any, float | None, dict[str, float]]:
    """Fit on the training snapshots.

    An estimator's threshold is the cheapest one on the newest fold's validation rows. Without folds
    it is the threshold of the spec; None if the task has none.

    `[training] function` takes a frame (features in order, and label; its index has the keys and
    event_timestamp), of each forward fold two such frames, for training and for validation, and
    the spec's parameters with its seed and features. It returns a model over a frame of features,
    and figures by name; a figure `threshold` replaces the threshold of the spec.

    Returns:
        The fitted model, its threshold, and the figures of `[training] function`.

    """
    if not spec.training:
        threshold = spec.threshold
        if plan.folds and threshold is not None and spec.costs is not None:
            y, scores = fold_scores(spec, chosen, frame, plan.folds[-1])
            threshold = cheapest_threshold(y, scores, spec.costs, threshold)
        model = fit_pipeline(spec, chosen, snapshot_rows(frame, plan.train))
        return model, threshold, {}
    train_rows = _labelled_features(spec, frame, plan.train)
    folds = []
    for fold in plan.folds:
        fold_rows = _labelled_features(spec, frame, fold.train)
        folds.append((fold_rows, _labelled_features(spec, frame, fold.validation)))
    parameters = {"seed": spec.seed, "features": spec.inputs, **chosen.parameters}
    try:
        function = load_object(chosen.type)
        model, figures = function(train_rows, folds, parameters)
        require_methods(model, SCORE_METHODS[spec.task])
        metrics = {f"training/{name}": float(value) for name, value in figures.items()}
    except Exception as exc:
        raise TrainingError(
            f"{spec.name}: [training] {chosen.type}: {error_line(exc)}"
        ) from exc
    threshold = spec.threshold and metrics.get("training/threshold", spec.threshold)
    return model, threshold, metrics


def served_file(
    spec: ModelSpec, model: Any, threshold: float | None, frame: pa.Table, plan: Plan
) -> tuple[ModelFile, Proof]:
    """Return the file of a fitted model that is served, and the proof that it scores the same."""
    return served_form(
        model=model,
        spec=spec,
        rows=feature_columns(spec, snapshot_rows(frame, plan.train)),
        all_rows=feature_columns(spec, frame),
        threshold=threshold,
    )


def _labelled_features(
    spec: ModelSpec, frame: pa.Table, snapshots: Sequence[Snapshot]
) -> pd.DataFrame:
    rows = snapshot_rows(frame, snapshots)
    keys = rows.select([*spec.entity_key, "event_timestamp"]).to_pandas()
    labelled = feature_columns(spec, rows).assign(label=rows["label"].to_numpy())
    return labelled.set_index([keys[name] for name in keys])


def fit_pipeline(spec: ModelSpec, estimator: Estimator, rows: pa.Table) -> Any:
    """Fit an estimator behind its preprocessing on the rows of a frame.

    Raises:
        TrainingError: All labels are the same, or the estimator refuses them.

    """
    y = rows["label"].to_numpy()
    if len(np.unique(y)) <= 1:  # in a fold: the whole frame was checked before
        raise TrainingError(
            f"{spec.name}: every label of {len(y)} training rows is the same"
        )
    try:
        inputs = feature_columns(spec, rows)
        pipeline = build_pipeline(spec, estimator, inputs)
        # Boosting's threads wait for each other on busy cores.
        with threadpool_limits(1):
            pipeline.fit(inputs, y)
    except Exception as exc:
        raise TrainingError(
            f"{spec.name}: estimator {estimator.name}: {error_line(exc)}"
        ) from exc
    return pipeline


def cheapest_threshold(y: Labels, p: Scores, costs: Costs, default: float) -> float:
    """Return the threshold with the smallest cost; of equal ones the nearest to `default`."""
    tp = np.array([predict(p[y == 1], threshold).sum() for threshold in THRESHOLDS])
    fp = np.array([predict(p[y == 0], threshold).sum() for threshold in THRESHOLDS])
    total_costs = cost(costs, tp, fp, np.sum(y == 1) - tp)
    is_cheapest = np.isclose(total_costs, total_costs.min(), rtol=1e-12, atol=0)
    cheapest = THRESHOLDS[is_cheapest]
    return float(cheapest[np.argmin(np.abs(cheapest - default))])


def write_model(
    settings: Settings,
    spec: ModelSpec,
    served: ModelFile,
    train: pa.Table,
    threshold: float | None,
    as_of: str,
    folder: Path,
) -> None:
    """Write the files of a model that was fitted on rows such as `train`: served model and manifest."""
    rows = feature_columns(spec, train)
    background = rows.sample(min(BACKGROUND_ROWS, len(rows)), random_state=spec.seed)
    is_missing = (rows.isna() | (rows == MISSING)).any()
    defaults = {name: _default(rows[name], kind) for name, kind in spec.inputs.items()}
    manifest = ModelManifest(
        model=spec.name,
        loader=served.write(folder),
        entity_key=spec.entity_key,
        outcome_key=spec.outcome_key or {},
        feature_service=spec.feature_service,
        features=spec.features,
        defaults=defaults,
        background=tuple(background.to_dict("records")),
        nullable=tuple(name for name in spec.features if is_missing[name]),
        population=spec.population,
        threshold=threshold,
        classes=spec.classes,
        interface=served.interface,
        as_of=as_of,
        lookup=look_up_specification(settings, spec.feature_service),
    )
    (folder / CONTRACT_FILE).write_text(manifest.model_dump_json(indent=2))


def _default(column: "pd.Series[Any]", kind: str) -> int | float | str:
    if kind == "string":
        return str(column.mode()[0])
    return int(column.median()) if kind == "int64" else float(column.median())

"""Stage 4, evaluate: measure challenger, baseline and champion on the newest matured snapshots.

The measured model is the one that will be served. The scored rows are stored as the reference that
windows of the version are compared with; figures of the challenger alone, plots and
`evaluation.json` follow.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from core.errors import NoChampionError
from core.settings import Settings
from core.shapley import shapley_values
from core.spec import ModelSpec
from mlflow_server.api.comparison import EVALUATION
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.manifest import SCORE, ModelManifest
from mlflow_server.model.pyfunc import ModelFile, read_files
from training.artifacts import (
    CANDIDATE,
    PLOTS,
    PROOF,
    REFERENCE,
    UNLABELLED,
    artifact_bytes,
    fetched_artifact,
    load_table,
    store_table,
)
from training.data.frame import feature_columns, snapshot_rows
from training.data.leaks import leak_remarks
from training.data.snapshots import Plan, dates
from training.evaluation.metrics import (
    CELLS,
    Labels,
    Scored,
    Segment,
    all_metrics,
    best_constant,
    by_segment,
    calibration,
    fairness,
    interval,
    resampled,
    top_class,
)
from training.evaluation.plots import draw
from training.evaluation.psi import NEWEST_SNAPSHOTS
from training.evaluation.reference import evaluated_members, measure_spread, with_scores
from training.evaluation.results import EVALUATIONS, Evaluation
from training.model.estimators import category_remarks
from training.model.onnx_export import EXPORT_REMEDY
from training.model.scoring import (
    open_session,
    scored_rows,
    session_inputs,
    version_scores,
)
from training.stages.dataset import load_frame

EXPLAINED_ROWS = 200
EXPLAINING_COALITIONS = 128
"""Coalitions that are scored to explain a row: a picture does not need all."""


def evaluate(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Store metrics, plots, the scored reference and `evaluation.json` in the run."""
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, run_id)
    rows = snapshot_rows(frame, plan.test)
    y = rows["label"].to_numpy()
    with fetched_artifact(tracking, run_id, CANDIDATE) as candidate:
        manifest, model = read_files(candidate, spec.trusted_types)
    members = evaluated_members(spec, rows, load_table(tracking, run_id, UNLABELLED))
    scored_members = scored_rows(spec, model, manifest.threshold, members)
    reference = with_scores(spec, members, scored_members)
    store_table(tracking, run_id, REFERENCE, reference)
    challenger = scored_members.of(slice(len(y)))

    proof = json.loads(artifact_bytes(tracking, run_id, PROOF))
    evaluation, champion = compare(settings, spec, frame, plan, challenger, proof)
    newest_snapshots = snapshot_rows(frame, plan.snapshots[-NEWEST_SNAPSHOTS:])
    evaluation = replace(
        evaluation,
        contributions=contributions(spec, manifest, model, feature_columns(spec, rows)),
        spread=measure_spread(spec, reference, newest_snapshots),
    )
    tracking.log(run_id, metrics=run_metrics(evaluation))
    tracking.log_dict(
        run_id, EVALUATIONS.dump_python(evaluation, mode="json"), EVALUATION
    )
    version = evaluation.champion_version
    models = _plotted_models(challenger, champion, version)
    title = f"{len(y):,} rows at {dates(plan.test)}"
    with TemporaryDirectory() as name:
        draw(Path(name), title, spec, y, models, evaluation.contributions)
        tracking.log_artifacts(run_id, name, PLOTS)


def compare(
    settings: Settings,
    spec: ModelSpec,
    frame: pa.Table,
    plan: Plan,
    challenger: Scored,
    proof: dict[str, Any],
) -> tuple[Evaluation, Scored | None]:
    """Measure all that the gates read.

    Args:
        settings: Settings of the installation.
        spec: The model.
        frame: Frame of the training.
        plan: Its snapshots.
        challenger: Scores of the test rows.
        proof: Fields of `training.model.onnx_export.Proof`.

    Returns:
        The evaluation without contributions and spread, and the champion's scores if it has any.

    """
    rows = snapshot_rows(frame, plan.test)
    version = Registry(settings).production(spec.name)
    champion: Scored | None = None
    problems: dict[str, Any] = {}
    evaluation = unmeasured(challenger.threshold, version)
    if spec.has_labels:
        champion, problems = _champion(settings, spec, version, rows)
        y = rows["label"].to_numpy()
        evaluation = measure_models(spec, y, challenger, champion, version)
    segments = _segments(spec, rows, challenger)
    reasons = proof["reasons"]
    train_rows = snapshot_rows(frame, plan.train)
    evaluation = replace(
        evaluation,
        **problems,
        segments=segments,
        figures=evaluation.figures | _figures(spec, proof, segments),
        unproved="; ".join([*reasons, EXPORT_REMEDY]) if reasons else "",
        remarks=_remarks(spec, train_rows, rows, evaluation.challenger),
    )
    return evaluation, champion


def _plotted_models(
    challenger: Scored, champion: Scored | None, version: str | None
) -> dict[str, Scored]:
    """Return the scored models by the names that plots show."""
    models = {"challenger": challenger}
    if champion:
        models[f"version {version} (champion)"] = champion
    return models


def _segments(
    spec: ModelSpec, rows: pa.Table, challenger: Scored
) -> tuple[Segment, ...]:
    """Measure the challenger by each value of each column in the spec's `segment`."""
    y = rows["label"].to_numpy()
    segments: list[Segment] = []
    for name in spec.segment:
        column = rows[name].cast("string").to_pandas().rename(name)
        segments += by_segment(column, y, challenger, spec.costs)
    return tuple(segments)


def _figures(
    spec: ModelSpec, proof: dict[str, Any], segments: Sequence[Segment]
) -> dict[str, float]:
    """Return the agreement of the export, and for two classes the fairness."""
    figures = {"onnx_difference": proof["largest_difference"]}
    if spec.task == "classification":
        figures |= fairness(segments)
    return figures


def _remarks(
    spec: ModelSpec, train: pa.Table, test: pa.Table, metrics: dict[str, float]
) -> tuple[str, ...]:
    """Return remarks on features that may know the label, and on texts with many values."""
    many_values = category_remarks(spec.inputs, feature_columns(spec, train))
    return (*leak_remarks(spec, test, metrics), *many_values)


def contributions(
    spec: ModelSpec, manifest: ModelManifest, model: ModelFile, inputs: pd.DataFrame
) -> dict[str, float]:
    """Return the mean size of each feature's contribution to the scores of some rows.

    Contributions are Shapley values (core.shapley), for many classes of the most probable one. The
    largest comes first.
    """
    rows = inputs.sample(min(EXPLAINED_ROWS, len(inputs)), random_state=spec.seed)
    known_rows: Any = manifest.background or [manifest.defaults]
    background = session_inputs(spec.inputs, pd.DataFrame(known_rows))
    run = partial(open_session(model).run, [SCORE])
    sizes = []
    for position in range(len(rows)):
        row = session_inputs(spec.inputs, rows[position : position + 1])
        mean, effects = shapley_values(run, row, background, EXPLAINING_COALITIONS)
        answer = np.argmax(mean + effects.sum(axis=0))
        sizes.append(np.abs(effects[:, answer]))
    mean_sizes = dict(zip(spec.features, np.mean(sizes, axis=0).tolist(), strict=True))
    return dict(sorted(mean_sizes.items(), key=lambda item: -item[1]))


def _champion(
    settings: Settings, spec: ModelSpec, version: str | None, rows: pa.Table
) -> tuple[Scored | None, dict[str, Any]]:
    """Return the scores of production's version, or the field of Evaluation that says why not."""
    if version is None:
        return None, {}
    try:
        return version_scores(settings, spec, version, rows), {}
    except NoChampionError as exc:
        return None, {"no_champion": str(exc)}
    except Exception as exc:  # noqa: BLE001  (whatever it is: the gate names it and refuses)
        text = " ".join(str(exc).split())[:300]
        return None, {"unavailable": f"{type(exc).__name__}: {text}"}


def measure_models(
    spec: ModelSpec,
    y: Labels,
    challenger: Scored,
    champion: Scored | None,
    version: str | None,
) -> Evaluation:
    """Measure challenger, baseline and champion on the same rows, each at its own threshold."""
    models = {"challenger": challenger}
    if champion:
        models["champion"] = champion
    samples = resampled(y, models, spec.costs, spec.seed)
    metrics = all_metrics(y, challenger, spec.costs)
    champion_metrics = all_metrics(y, champion, spec.costs) if champion else {}
    intervals = {}
    differences = {}
    for name in metrics:
        if name in CELLS:
            continue
        challenger_samples = samples["challenger"][name]
        intervals[name] = interval(metrics[name], challenger_samples)
        if champion:
            difference = metrics[name] - champion_metrics[name]
            paired_samples = challenger_samples - samples["champion"][name]
            differences[name] = interval(difference, paired_samples)
    names = ("0", "1") if spec.task == "classification" else spec.classes
    class_rows = {name: int((y == code).sum()) for code, name in enumerate(names)}
    return Evaluation(
        rows=len(y),
        class_rows=class_rows,
        threshold=challenger.threshold,
        challenger=metrics,
        intervals=intervals,
        baseline=best_constant(y, challenger, spec.costs),
        champion_version=version,
        champion=champion_metrics,
        differences=differences,
        figures={"ece": calibration(*top_class(y, challenger))},
    )


def unmeasured(threshold: float | None, version: str | None) -> Evaluation:
    """Return the evaluation of a model on rows without labels.

    Args:
        threshold: Threshold of the challenger.
        version: The version in production.

    """
    return Evaluation(
        rows=0,
        threshold=threshold,
        challenger={},
        baseline={},
        champion_version=version,
        champion={},
        differences={},
    )


def run_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return metrics of the run; MLflow groups its charts by the part before the slash."""
    groups = {
        "test": evaluation.challenger | evaluation.figures,
        "baseline": evaluation.baseline,
        "champion": evaluation.champion,
    }
    # Without a group, too: people sort runs by `metrics.f1 DESC`.
    metrics = dict(evaluation.challenger)
    for group, values in groups.items():
        for name, value in values.items():
            metrics[f"{group}/{name}"] = value
    for name, difference in evaluation.differences.items():
        metrics[f"minus_champion/{name}"] = difference.value
        metrics[f"minus_champion/{name}_upper"] = difference.high
    return metrics

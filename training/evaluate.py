"""Stage 4: measure challenger, trivial baseline and champion on the newest matured snapshots."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    PrecisionRecallDisplay,
    PredictionErrorDisplay,
    RocCurveDisplay,
)

from core.errors import NoChampionError
from core.settings import Settings
from core.shapley import shapley_values
from core.spec import ModelSpec
from mlflow_server.pyfunc import ModelFile, read_file
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE, SCORE, ServedModel
from mlflow_server.tracking import Tracking
from training.artifacts import CANDIDATE, EVALUATION, PLOTS, PROOF, fetched, read
from training.dataset import load_frame
from training.frame import at, features, with_features
from training.gate import EVALUATIONS, Evaluation
from training.metrics import (
    CELLS,
    Labels,
    Scored,
    all_metrics,
    best_constant,
    bins,
    by_segment,
    calibration,
    fairness,
    interval,
    policy_costs,
    predict,
    resampled,
    top_class,
)
from training.onnx_export import REMEDY, columns, latency_p99_ms, open_session, score
from training.snapshots import dates

CURVES: dict[str, Callable[..., Any]] = {
    "roc": RocCurveDisplay.from_predictions,
    "precision_recall": PrecisionRecallDisplay.from_predictions,
    "calibration": partial(
        CalibrationDisplay.from_predictions, n_bins=10, strategy="quantile"
    ),
}
SHOWN_ROWS, EXPLAINED_ROWS = 2000, 200
COALITIONS = 128
"""Scored to explain a row; for a picture not all are needed."""


def evaluate(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Store metrics (plain, `trivial_…`, `champion_…`), plots and `evaluation.json` in the run."""
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, run_id)
    rows = at(frame, plan.test)
    y, inputs = rows["label"].to_numpy(), features(spec, rows)
    with fetched(tracking, run_id, CANDIDATE) as candidate:
        contract = ServedModel.model_validate_json(
            (candidate / CONTRACT_FILE).read_bytes()
        )
        model = read_file(candidate, contract, spec.serving.trusted_types)
    threshold, proof = contract.threshold, json.loads(read(tracking, run_id, PROOF))
    challenger = Scored(score(model, spec.inputs, inputs), threshold)
    version = Registry(settings).production(spec.name)
    champion, found = _champion(settings, spec, version, rows)
    evaluation = compare(spec, y, challenger, champion, version)
    column = rows[spec.segment].cast("string").to_pandas() if spec.segment else None
    segments = () if column is None else by_segment(column, y, challenger, spec.costs)
    figures = evaluation.figures | {
        **({} if threshold is None else fairness(segments)),
        "model_mb": len(model.content) / 1e6,
        "latency_p99_ms": latency_p99_ms(model, spec.inputs, inputs),
        "onnx_difference": proof["largest_difference"],
    }
    unproved = "; ".join([*proof["reasons"], REMEDY]) if proof["reasons"] else ""
    explained = contributions(spec, contract, model, inputs)
    means = explained[1].abs().mean().sort_values(ascending=False).to_dict()
    found |= {"contributions": means, "segments": segments, "figures": figures}
    evaluation = replace(evaluation, **found, unproved=unproved)
    tracking.log(run_id, metrics=named(evaluation))
    tracking.log_json(
        run_id, EVALUATIONS.dump_python(evaluation, mode="json"), EVALUATION
    )
    models = {"challenger": challenger}
    models |= {f"version {version} (champion)": champion} if champion else {}
    with TemporaryDirectory() as name:
        title = f"{len(y):,} rows at {dates(plan.test)}"
        draw(partial(_axes, Path(name), title), spec, y, models, explained)
        tracking.log_artifacts(run_id, Path(name), PLOTS)


def contributions(
    spec: ModelSpec, contract: ServedModel, model: ModelFile, inputs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return some of `inputs`, and what each feature contributes to their scores (core.shapley).

    Of many classes to that of the most probable one.
    """
    rows = inputs.sample(min(EXPLAINED_ROWS, len(inputs)), random_state=spec.seed)
    known: Any = contract.background or [contract.defaults]
    background = columns(spec.inputs, pd.DataFrame(known))
    run, found = partial(open_session(model).run, [SCORE]), []
    for place in range(len(rows)):
        row = columns(spec.inputs, rows[place : place + 1])
        mean, moved = shapley_values(run, row, background, COALITIONS)
        found.append(moved[:, np.argmax(mean + moved.sum(axis=0))])
    return rows, pd.DataFrame(found, columns=[*spec.features])


def _champion(
    settings: Settings, spec: ModelSpec, version: str | None, rows: pa.Table
) -> tuple[Scored | None, dict[str, Any]]:
    """Return the scores of what is in production, or why there are none as Evaluation has it."""
    if version is None:
        return None, {}
    try:
        return version_scores(settings, spec, version, rows), {}
    except NoChampionError as exc:
        return None, {"no_champion": str(exc)}
    except Exception as exc:  # noqa: BLE001  (whatever it is, the gate says it and refuses)
        reason = " ".join(str(exc).split())[:300]
        return None, {"unavailable": f"{type(exc).__name__}: {reason}"}


def version_scores(
    settings: Settings, spec: ModelSpec, version: str, rows: pa.Table
) -> Scored:
    """Score `rows` (a frame) with `version` through its own features, in the order of `rows`.

    NoChampionError: it is of another task or of other entities, or takes other request data.
    """
    registry, trusted = Registry(settings), spec.serving.trusted_types
    contract, model = registry.served(registry.version(spec.name, version), trusted)
    if (contract.threshold is None, contract.classes) != (
        spec.threshold is None,
        spec.classes,
    ):
        its = " ".join([spec.task, *spec.classes])
        raise NoChampionError(f"version {version} of {spec.name} is of no {its}")
    if contract.entity_key != spec.entity_key:
        its, ours = (", ".join(key) for key in (contract.entity_key, spec.entity_key))
        raise NoChampionError(
            f"version {version} of {spec.name} is of {its}, not of {ours}"
        )
    theirs = as_trained(spec, contract)
    given = theirs.feature_service == spec.feature_service
    if not (given and contract.features.items() <= spec.features.items()):
        data = contract.lookup.request_data
        if not data.keys() <= {*rows.column_names}:
            raise NoChampionError(
                f"version {version} of {spec.name} takes request data {[*data]}"
            )
        labelled = rows.select([*spec.entity_key, "event_timestamp", "label", *data])
        rows = with_features(settings, theirs, labelled)
    return Scored(
        score(model, theirs.inputs, features(theirs, rows)), contract.threshold
    )


def as_trained(spec: ModelSpec, version: ServedModel) -> ModelSpec:
    """Return the spec with what `version` reads, and for whom it is defined."""
    own = {
        name: getattr(version, name)
        for name in ("features", "feature_service", "population")
    }
    return spec.model_copy(update=own | {"audit": {}})


def compare(
    spec: ModelSpec,
    y: Labels,
    challenger: Scored,
    champion: Scored | None,
    version: str | None,
) -> Evaluation:
    """Measure all three on the same rows, each model at its own threshold."""
    costs = spec.costs
    models = {"challenger": challenger} | ({"champion": champion} if champion else {})
    metrics = {name: all_metrics(y, model, costs) for name, model in models.items()}
    samples = resampled(y, models, costs, spec.seed)
    ours, theirs = metrics["challenger"], metrics.get("champion", {})
    intervals, differences = {}, {}
    for name in (name for name in ours if name not in CELLS):
        intervals[name] = interval(ours[name], samples["challenger"][name])
        if theirs:
            paired = samples["challenger"][name] - samples["champion"][name]
            differences[name] = interval(ours[name] - theirs[name], paired)
    return Evaluation(
        rows=len(y),
        threshold=challenger.threshold,
        challenger=ours,
        intervals=intervals,
        trivial=best_constant(y, challenger, costs),
        champion_version=version,
        champion=theirs,
        differences=differences,
        figures=calibration(*top_class(y, challenger))
        | (policy_costs(y, costs) if costs else {}),
    )


def named(evaluation: Evaluation) -> dict[str, float]:
    """Metrics of the run, by name."""
    named = evaluation.challenger | evaluation.figures
    named |= {f"trivial_{name}": value for name, value in evaluation.trivial.items()}
    named |= {f"champion_{name}": value for name, value in evaluation.champion.items()}
    for name, found in evaluation.intervals.items():
        named |= {f"{name}_low": found.low, f"{name}_high": found.high}
    for name, difference in evaluation.differences.items():
        named[f"{name}_minus_champion"] = difference.value
        named[f"{name}_minus_champion_upper"] = difference.high
    return named


def draw(
    axes_of: Callable[[str], AbstractContextManager[Axes]],
    spec: ModelSpec,
    y: Labels,
    models: Mapping[str, Scored],
    explained: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    """Write PNG files. models: the challenger first; explained: what `contributions` returns."""
    challenger = next(iter(models.values()))
    answers = predict(challenger.scores, challenger.threshold)
    if spec.task == "regression":
        with axes_of("predicted_against_actual") as axes:
            PredictionErrorDisplay.from_predictions(
                y,
                answers,
                kind="actual_vs_predicted",
                subsample=SHOWN_ROWS,
                random_state=0,
                ax=axes,
            )
        with axes_of("calibration") as axes:
            for model, scored in models.items():
                axes.plot(*bins(y, scored.scores)[1:], "s-", label=model)
            axes.axline((0, 0), slope=1, linestyle=":", color="black", label="as said")
            axes.set(
                xlabel="mean prediction of each tenth of the rows", ylabel="mean label"
            )
            axes.legend()
    else:
        for name in ["calibration"] if spec.classes else [*CURVES]:
            with axes_of(name) as axes:
                for model, scored in models.items():
                    CURVES[name](*top_class(y, scored), name=model, ax=axes)
        with axes_of("confusion_matrix") as axes:
            names = spec.classes or (0, 1)
            matrix = partial(
                ConfusionMatrixDisplay.from_predictions, display_labels=names
            )
            matrix(y, answers, labels=range(len(names)), colorbar=False, ax=axes)
    with axes_of("feature_importance") as axes:
        beeswarm(axes, *explained)


def beeswarm(axes: Axes, rows: pd.DataFrame, moved: pd.DataFrame) -> None:
    """Draw a dot for each row and feature, those that move scores most on top."""
    edges = np.linspace(moved.to_numpy().min(), moved.to_numpy().max(), 60)
    names = [*moved.abs().mean().sort_values().index]
    for place, name in enumerate(names):
        bins = pd.Series(np.digitize(moved[name], edges))
        # Of the dots that would lie on each other.
        nth = bins.groupby(bins).cumcount() + 1
        heights = place + (nth // 2) * (-1) ** nth * 0.8 / max(20, nth.max())
        ranks = rows[name].rank(pct=True)
        dots = axes.scatter(
            moved[name], heights, s=5, c=ranks, cmap="coolwarm", vmin=0, vmax=1
        )
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="contribution to the score")
    axes.figure.colorbar(dots, ticks=[], label="value of the feature, from low to high")


@contextmanager
def _axes(folder: Path, title: str, name: str) -> Iterator[Axes]:
    figure = Figure(figsize=(6, 5), layout="constrained")
    figure.suptitle(f"{name.replace('_', ' ')} · {title}", fontsize=10)
    yield figure.subplots()
    figure.savefig(folder / f"{name}.png")

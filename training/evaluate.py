"""Stage 4: measure challenger, trivial baseline and champion on the newest matured snapshot."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import skops.io
from sklearn.inspection import permutation_importance

from mlflow_server.registry import Registry
from mlflow_server.served_model import ONNX_FILE, at_most_1
from mlflow_server.tracking import Tracking
from stack.errors import NoChampionError
from training.artifacts import CANDIDATE, EVALUATION, PIPELINE_FILE, fetched
from training.calibration import calibration
from training.dataset import load_frame
from training.frame import at, features, with_features
from training.gate import EVALUATIONS, Evaluation
from training.metrics import (
    CELLS,
    LOSSES,
    Scored,
    all_metrics,
    best_constant,
    interval,
    policy_costs,
    resampled,
)
from training.onnx_proof import prove
from training.plots import figures
from training.scoring import latency_p99_ms, score
from training.segments import by_segment, fairness

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflow_server.served_model import ServedModel
    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.metrics import Labels

TRUSTED = (
    "numpy.dtype",
    "skl2onnx.sklapi.cast_transformer.CastTransformer",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)
"""Types that a pipeline file may hold beside those that skops trusts anyway."""


def evaluate(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Store metrics (plain, `trivial_…`, `champion_…`), plots and `evaluation.json` in the run.

    The ONNX file is proved against its pipeline here, so that a gate can say so.
    """
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, run_id)
    rows = at(frame, [plan.test])
    y, inputs = rows["label"].to_numpy(), features(spec, rows)
    chosen = tracking.run(run_id).params.get("threshold")
    threshold = None if chosen is None else float(chosen)
    with fetched(tracking, run_id, CANDIDATE) as candidate:
        model = (candidate / ONNX_FILE).read_bytes()
        pipeline = skops.io.load(candidate / PIPELINE_FILE, trusted=list(TRUSTED))
    proof = prove(
        pipeline, model, features(spec, frame), spec.seed,
        features=spec.features, threshold=threshold,
    )  # fmt: skip
    tracking.log_json(run_id, asdict(proof), "proof.json")
    models = {"challenger": Scored(score(model, spec.features, inputs), threshold)}
    version, champion = Registry(settings).production(spec.name), None
    unavailable, no_champion = None, ""
    if version is not None:
        try:
            champion = champion_scores(settings, spec, version, rows)
            models[f"version {version} (champion)"] = champion
        except NoChampionError as exc:
            no_champion = str(exc)
        except Exception as exc:  # noqa: BLE001  (whatever it is, the gate says it and refuses)
            unavailable = f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
    evaluation = compare(spec, y, models["challenger"], champion, version, unavailable)
    segments = () if spec.segment is None else by_segment(
        inputs[spec.segment], y, models["challenger"], spec.costs
    )  # fmt: skip
    gaps = {} if threshold is None else fairness(segments)
    measured = evaluation.figures | gaps | {
        "model_mb": len(model) / 1e6,
        "latency_p99_ms": latency_p99_ms(model, spec.features, inputs),
        "onnx_difference": proof.largest_difference,
    }  # fmt: skip
    evaluation = replace(
        evaluation, segments=segments, figures=measured, unproved="; ".join(proof.reasons),
        no_champion=no_champion,
    )  # fmt: skip
    tracking.log(run_id, metrics=named(evaluation))
    tracking.log_json(run_id, EVALUATIONS.dump_python(evaluation, mode="json"), EVALUATION)
    loss = LOSSES[spec.loss]
    rises = permutation_importance(
        pipeline, inputs, y, n_repeats=1, random_state=spec.seed,
        scoring=lambda _, shuffled, true: -loss(true, score(model, spec.features, shuffled)),
    ).importances_mean  # fmt: skip
    importance = dict(zip(spec.features, map(float, rises), strict=True))
    title = f"{len(y):,} rows at {plan.test:%Y-%m-%d}"
    for path, figure in figures(y, models, importance, title, spec.loss).items():
        tracking.log_figure(run_id, figure, path)


def champion_scores(settings: Settings, spec: ModelSpec, version: str, rows: pa.Table) -> Scored:
    """Score `rows` (a frame) with `version` through its own features, in the order of `rows`.

    Raises:
        NoChampionError: it is of another task, or of other entities.
        RegistryError: its files cannot be fetched or are not those registered.

    """
    registry = Registry(settings)
    contract, model = registry.served(registry.version(spec.name, version))
    if (contract.threshold is None) != (spec.threshold is None):
        raise NoChampionError(f"version {version} of {spec.name} is of no {spec.task}")
    if contract.entity_key != spec.entity_key:
        its, ours = (", ".join(key) for key in (contract.entity_key, spec.entity_key))
        raise NoChampionError(f"version {version} of {spec.name} is of {its}, not of {ours}")
    theirs = as_trained(spec, contract)
    given = theirs.feature_service == spec.feature_service
    if not (given and contract.features.items() <= spec.features.items()):
        labelled = rows.select([*spec.entity_key, "event_timestamp", "label"])
        rows = with_features(settings, theirs, labelled)
    scores = score(model, contract.features, features(theirs, rows))
    return Scored(at_most_1(scores, contract.threshold), contract.threshold)


def as_trained(spec: ModelSpec, version: ServedModel) -> ModelSpec:
    """Return the spec with what `version` reads, and for whom it is defined."""
    own = {
        "features": version.features,
        "feature_service": version.feature_service,
        "population": version.population,
    }
    return spec.model_copy(update=own)


def compare(
    spec: ModelSpec,
    y: Labels,
    challenger: Scored,
    champion: Scored | None,
    version: str | None,
    unavailable: str | None = None,
) -> Evaluation:
    """Measure all three on the same rows, each model at its own threshold."""
    costs = spec.costs
    models = {"challenger": challenger} | ({"champion": champion} if champion else {})
    found = {name: all_metrics(y, model, costs) for name, model in models.items()}
    drawn = resampled(y, models, costs, spec.seed)
    ours, theirs = found["challenger"], found.get("champion", {})
    return Evaluation(
        rows=len(y),
        threshold=challenger.threshold,
        challenger=ours,
        intervals={
            name: interval(value, drawn["challenger"][name])
            for name, value in ours.items() if name not in CELLS
        },
        trivial=best_constant(y, challenger.threshold, costs),
        champion_version=version,
        champion=theirs,
        differences={
            name: interval(
                ours[name] - theirs[name], drawn["challenger"][name] - drawn["champion"][name]
            )
            for name in theirs if name not in CELLS
        },
        unavailable=unavailable,
        figures=calibration(y, challenger.scores) | (policy_costs(y, costs) if costs else {}),
    )  # fmt: skip


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

"""Stage 4: measure challenger, trivial baseline and champion on the newest matured snapshot."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, ServedModel, wrong_files
from mlflow_server.tracking import Tracking
from stack.errors import GyreError, RegistryError
from training.artifacts import CANDIDATE, EVALUATION, read
from training.dataset import load_frame
from training.frame import at, features, with_features
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
    scored = {"challenger": score(model, spec.features, inputs)}
    version, champion, unavailable = Registry(settings).production(spec.name), None, None
    if version is not None:
        try:
            champion = champion_scores(settings, spec, version, rows)
            scored[f"version {version} (champion)"] = champion
        except GyreError as exc:
            unavailable = str(exc)
    evaluation = compare(spec, y, scored["challenger"], champion, version, unavailable)
    tracking.log(run_id, metrics=_named(evaluation))
    tracking.log_json(run_id, EVALUATIONS.dump_python(evaluation, mode="json"), EVALUATION)
    importance = permutation_importance(
        lambda shuffled: score(model, spec.features, shuffled), inputs, y, spec.seed
    )
    title = f"{len(y):,} customers at {plan.test:%Y-%m-%d}"
    for path, figure in figures(y, scored, spec.threshold, importance, title).items():
        tracking.log_figure(run_id, figure, path)


def champion_scores(settings: Settings, spec: ModelSpec, version: str, rows: pa.Table) -> Scores:
    """Score `rows` (a frame) with `version` through its own features, in the order of `rows`.

    Raises:
        RegistryError: its files cannot be fetched or are not those registered.

    """
    registry = Registry(settings)
    found = registry.version(spec.name, version)
    with TemporaryDirectory(prefix="gyre-") as name:
        folder = Path(name)
        registry.download(found, folder)
        if wrong := wrong_files(folder, found.tags):
            raise RegistryError(f"version {version} of {spec.name}: {'; '.join(wrong)}")
        contract = ServedModel.model_validate_json((folder / CONTRACT_FILE).read_bytes())
        model = (folder / ONNX_FILE).read_bytes()
    service = contract.feature_service
    theirs = spec.model_copy(update={"features": contract.features, "feature_service": service})
    if service != spec.feature_service:
        labelled = rows.select([spec.entity_key, "event_timestamp", "label"])
        rows = with_features(settings, theirs, labelled)
    return score(model, contract.features, features(theirs, rows))


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


def _named(evaluation: Evaluation) -> dict[str, float]:
    named = dict(evaluation.challenger)
    named |= {f"trivial_{name}": value for name, value in evaluation.trivial.items()}
    named |= {f"champion_{name}": value for name, value in evaluation.champion.items()}
    for name, difference in evaluation.differences.items():
        named[f"{name}_minus_champion"] = difference.value
        named[f"{name}_minus_champion_upper"] = difference.high
    return named

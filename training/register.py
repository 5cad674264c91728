"""Stages 6 and 7: a passed challenger becomes a version, and the version goes into production."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx
import skops.io

from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote as put_into_role
from mlflow_server.promotion import reconcile
from mlflow_server.registration import register as register_version
from mlflow_server.registry import PRODUCTION, Registry
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, ServedModel
from mlflow_server.tracking import Tracking
from stack.errors import TrainingError
from training.artifacts import CANDIDATE, PIPELINE_FILE, fetched
from training.dataset import load_frame
from training.frame import at, features
from training.gate import load_evaluation
from training.onnx_proof import prove

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.gate import Evaluation
    from training.snapshots import Plan

TRUSTED = (
    "numpy.dtype",
    "skl2onnx.sklapi.cast_transformer.CastTransformer",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)
"""Types that a pipeline file may hold beside those that skops trusts anyway."""
REQUIREMENTS = [f"{package}=={installed(package)}" for package in ("onnxruntime", "mlflow")]
EXAMPLE_ROWS = 5
MINUTE = "%Y-%m-%d %H:%M"
LINEAGE = (
    "as_of", "git_commit", "git_clean", "lock_sha256", "code_sha256", "feature_service",
    "definition_sha256", "frame_sha256", "spec_sha256", "seed", "reason", "cause",
)  # fmt: skip


def register(settings: Settings, spec: ModelSpec, run_id: str) -> str:
    """Prove the ONNX file against scikit-learn and register it; return the version.

    Raises:
        TrainingError: the proof failed; nothing was registered.

    """
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, run_id)
    tags = tracking.run(run_id).tags
    evaluation = load_evaluation(tracking, run_id)
    with fetched(tracking, run_id, CANDIDATE) as candidate, TemporaryDirectory() as name:
        model, extra = (candidate / ONNX_FILE).read_bytes(), Path(name)
        pipeline = skops.io.load(candidate / PIPELINE_FILE, trusted=list(TRUSTED))
        rows = features(spec, frame)
        proof = prove(
            pipeline, model, rows, spec.seed, features=spec.features, threshold=spec.threshold
        )
        tracking.log_json(run_id, asdict(proof), "proof.json")
        if not proof.passed:
            tracking.finish(run_id, "FAILED")
            raise TrainingError(f"ONNX does not score as scikit-learn does: {proof.reasons}")
        contract = _contract(spec, at(frame, plan.train), tags["as_of"])
        (extra / CONTRACT_FILE).write_text(contract.model_dump_json(indent=2))
        copy(candidate / PIPELINE_FILE, extra)
        example = features(spec, at(frame, [plan.test]).slice(0, EXAMPLE_ROWS))
        lineage = (*LINEAGE, f"table.raw.{spec.dataset}")
        version = register_version(
            settings,
            model=spec.name,
            run_id=run_id,
            onnx_model=onnx.load_model_from_string(model),
            extra_files=extra,
            input_example=example,
            tags={name: tags[name] for name in lineage if tags.get(name)},
            description=_description(evaluation, plan, tags),
            requirements=REQUIREMENTS,
        )
    return version.version


def promote(
    settings: Settings, spec: ModelSpec, run_id: str, version: str, *, who: str, reason: str
) -> str:
    """Put the version into production in place of the champion it was compared with.

    Returns one line on what was done. A run whose `as_of` is older than the newest promotion never
    promotes. Repeated after a kill it finds its own promotion done.

    Raises:
        PromotionRefusedError: another version went into production in the meantime.

    """
    tracking, registry, ledger = Tracking(settings), Registry(settings), Ledger(settings)
    reconcile(registry, ledger, spec.name)  # carries out what a killed try had begun
    evaluation = load_evaluation(tracking, run_id)
    as_of = datetime.fromisoformat(tracking.run(run_id).tags["as_of"])
    applied = [row for row in ledger.rows(spec.name)
               if row.role == PRODUCTION and row.state == "applied"]  # fmt: skip
    if any(row.to_version == version for row in applied):
        outcome = f"version {version} was put into production before"
    elif applied and as_of < applied[-1].time:
        newest = applied[-1]
        outcome = (
            f"version {version} is registered and not promoted: its as_of {as_of:{MINUTE}} is "
            f"older than the promotion of version {newest.to_version} at {newest.time:{MINUTE}}"
        )
    else:
        row = put_into_role(
            registry, ledger, spec.name, version, who=who, why=reason,
            replaces=evaluation.champion_version, evidence=f"runs:/{run_id}",
        )  # fmt: skip
        before = f"in place of {row.from_version}" if row.from_version else "the first one"
        outcome = f"version {row.to_version} is in production, {before}"
    tracking.log(run_id, tags={"outcome": outcome, "version": version})
    tracking.finish(run_id, "FINISHED")
    return outcome


def _contract(spec: ModelSpec, train: pa.Table, as_of: str) -> ServedModel:
    rows = features(spec, train)
    return ServedModel(
        model=spec.name,
        entity_key=spec.entity_key,
        feature_service=spec.feature_service,
        features=spec.features,
        defaults={name: _default(rows[name], kind) for name, kind in spec.features.items()},
        population=spec.population,
        threshold=spec.threshold,
        as_of=as_of,
    )


def _default(column: pd.Series[Any], kind: str) -> int | float | str:
    if kind == "string":
        return str(column.mode()[0])
    return int(column.median()) if kind == "int64" else float(column.median())


def _description(evaluation: Evaluation, plan: Plan, tags: dict[str, str]) -> str:
    ours, trivial = evaluation.challenger, evaluation.trivial
    return (
        f"As of {tags['as_of'][:10]}: tested on {evaluation.rows:,} rows at {plan.test:%Y-%m-%d}. "
        f"Log loss {ours['log_loss']:.4f} (best constant {trivial['log_loss']:.4f}), "
        f"AUC {ours['auc']:.3f} (0.5), F1 {ours['f1']:.3f} ({trivial['f1']:.3f}). "
        f"Reason: {tags['reason']}."
    )

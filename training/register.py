"""Stages 6 and 7: a passed challenger becomes a version, and the version goes into production.

With `[rollout] policy = "canary"` it goes into role shadow instead, the first step on its way.
"""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx

from feature_repo.datasets import load_dataset
from feature_repo.definition_check import write_sample
from feature_repo.features import open_raw, raw_table
from feature_repo.lookup_writer import look_up_specification
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote as put_into_role
from mlflow_server.promotion import reconcile
from mlflow_server.registration import register as register_version
from mlflow_server.registry import PRODUCTION, SHADOW, Registry
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, ServedModel
from mlflow_server.tracking import Tracking
from stack.errors import PromotionRefusedError
from stack.spec import MISSING
from training.artifacts import CANDIDATE, PIPELINE_FILE, fetched
from training.dataset import load_frame
from training.frame import at, content_hash, features
from training.gate import load_evaluation
from training.lineage import LINEAGE, TABLE_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import pyarrow as pa

    from mlflow_server.ledger import LedgerRow
    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.gate import Evaluation
    from training.snapshots import Plan

REQUIREMENTS = [f"{package}=={installed(package)}" for package in ("onnxruntime", "mlflow")]
EXAMPLE_ROWS = 5
TOLD = {"classification": ("log_loss", "auc", "f1"), "regression": ("rmse", "mae", "r2")}
MINUTE = "%Y-%m-%d %H:%M"


def register(settings: Settings, spec: ModelSpec, run_id: str) -> str:
    """Register what passed the gates, with the threshold it was measured at; return the version."""
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, run_id)
    tags = tracking.run(run_id).tags
    evaluation = load_evaluation(tracking, run_id)
    with fetched(tracking, run_id, CANDIDATE) as candidate, TemporaryDirectory() as name:
        model, extra = (candidate / ONNX_FILE).read_bytes(), Path(name)
        made = contract(settings, spec, at(frame, plan.train), evaluation.threshold, tags["as_of"])
        (extra / CONTRACT_FILE).write_text(made.model_dump_json(indent=2))
        copy(candidate / PIPELINE_FILE, extra)
        definition = _definition_sample(settings, spec, tags, extra)
        example = features(spec, at(frame, [plan.test]).slice(0, EXAMPLE_ROWS))
        table = [name for name in tags if name.startswith(TABLE_TAG)]
        version = register_version(
            settings,
            model=spec.name,
            run_id=run_id,
            onnx_model=onnx.load_model_from_string(model),
            extra_files=extra,
            input_example=example,
            tags={
                **{name: tags[name] for name in (*LINEAGE, *table) if tags.get(name)},
                "definition_values_sha256": definition,
            },
            description=_description(spec, evaluation, plan, tags),
            requirements=REQUIREMENTS,
        )
    tracking.log(run_id, tags={"version": version.version})
    return version.version


def _definition_sample(
    settings: Settings, spec: ModelSpec, tags: Mapping[str, str], folder: Path
) -> str:
    """Write what the features mean to the version into `folder`; return the values' hash."""
    dataset = load_dataset(spec.dataset)
    as_of = datetime.fromisoformat(tags["as_of"])
    raw = open_raw(raw_table(settings, dataset), int(tags[f"{TABLE_TAG}{dataset.name}"]), as_of)
    service = spec.feature_service
    values = write_sample(settings, dataset, service, [*spec.entity_key], raw, folder)
    return content_hash(values)


def promote(
    settings: Settings, spec: ModelSpec, run_id: str, version: str, *, who: str, reason: str
) -> str:
    """Put the version into production in place of the champion it was compared with.

    With a canary it becomes the shadow, in place of whatever is; the first version of all has
    nothing to be compared with and goes into production.

    Returns one line on what was done. A run whose `as_of` is older than the newest promotion never
    promotes. Repeated after a kill it finds its own promotion done.

    Raises:
        PromotionRefusedError: another version went into production in the meantime.

    """
    tracking, outcome = Tracking(settings), settled(settings, spec, run_id, version)
    if outcome is None:
        champion = load_evaluation(tracking, run_id).champion_version
        as_of = datetime.fromisoformat(tracking.run(run_id).tags["as_of"])
        row = _put(settings, spec, run_id, version, champion, as_of, who=who, why=reason)
        outcome = _promoted(row)
    tracking.log(run_id, tags={"outcome": outcome})
    tracking.finish(run_id, "FINISHED")
    return outcome


def _put(
    settings: Settings,
    spec: ModelSpec,
    run_id: str,
    version: str,
    champion: str | None,
    as_of: datetime,
    *,
    who: str,
    why: str,
) -> LedgerRow:
    registry = Registry(settings)
    canary = spec.rollout.policy == "canary" and champion is not None
    if canary and (current := registry.production(spec.name)) != champion:
        raise PromotionRefusedError(
            f"{spec.name}: production is version {current}, and version {version} was compared "
            f"with version {champion}"
        )
    where = {"role": SHADOW} if canary else {"replaces": champion}
    with closing(Ledger(settings, as_of)) as ledger:
        return put_into_role(
            registry, ledger, spec.name, version, who=who, why=why,
            evidence=f"runs:/{run_id}", **where,
        )  # fmt: skip


def settled(settings: Settings, spec: ModelSpec, run_id: str, version: str) -> str | None:
    """Say why no promotion is to come: it was done, or the run's `as_of` is too old; else None."""
    with closing(Ledger(settings)) as ledger:
        rows = reconcile(Registry(settings), ledger, spec.name)  # finishes what a killed try began
    every = [row for row in rows if row.applied_at]
    if own := [row for row in every if row.evidence == f"runs:/{run_id}"]:
        return _promoted(own[-1])
    applied = [row for row in every if row.role == PRODUCTION]
    if any(row.to_version == version for row in applied):
        return f"version {version} was put into production before"
    as_of = datetime.fromisoformat(Tracking(settings).run(run_id).tags["as_of"])
    if applied and as_of < applied[-1].time:
        newest = applied[-1]
        return (
            f"version {version} is registered and not promoted: its as_of {as_of:{MINUTE}} is "
            f"older than the promotion of version {newest.to_version} at {newest.time:{MINUTE}} "
            f"by {newest.who}"
        )
    return None


def _promoted(row: LedgerRow) -> str:
    if row.role == SHADOW:
        return (
            f"version {row.to_version} is the shadow, the first step of its rollout: "
            f"rollout_{row.model} goes on, or: gyre rollout {row.model}"
        )
    before = f"in place of {row.from_version}" if row.from_version else "the first one"
    return f"version {row.to_version} is in production, {before}"


def contract(
    settings: Settings, spec: ModelSpec, train: pa.Table, threshold: float | None, as_of: str
) -> ServedModel:
    """How serving calls a model that was fitted on the rows `train`, and reads its features."""
    rows = features(spec, train)
    return ServedModel(
        model=spec.name,
        entity_key=spec.entity_key,
        feature_service=spec.feature_service,
        features=spec.features,
        defaults={name: _default(rows[name], kind) for name, kind in spec.features.items()},
        nullable=tuple(n for n in spec.features if (rows[n].isna() | (rows[n] == MISSING)).any()),
        population=spec.population,
        threshold=threshold,
        as_of=as_of,
        lookup=look_up_specification(settings, spec.feature_service),
    )


def _default(column: pd.Series[Any], kind: str) -> int | float | str:
    if kind == "string":
        return str(column.mode()[0])
    return int(column.median()) if kind == "int64" else float(column.median())


def _description(spec: ModelSpec, evaluation: Evaluation, plan: Plan, tags: dict[str, str]) -> str:
    ours, trivial, at = evaluation.challenger, evaluation.trivial, evaluation.threshold
    told = ", ".join(
        f"{name.replace('_', ' ')} {ours[name]:.4f} ({trivial[name]:.4f})"
        for name in TOLD[spec.task]
    )
    says = "" if at is None else f"Says 1 from {at:.2f} on. "
    return (
        f"As of {tags['as_of'][:10]}: tested on {evaluation.rows:,} rows at {plan.test:%Y-%m-%d}, "
        f"in brackets the best constant: {told}. {says}More: model_card.html of its run. "
        f"Reason: {tags['reason']}."
    )

"""Stages 6 and 7: a passed challenger becomes a version, and the version goes into production.

With `[rollout] policy = "canary"` it goes into role shadow instead. Where the spec asks for it, a
person decides in between: the run is finished while approval is pending, so that it neither holds
up nor causes a retraining.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from importlib import metadata

import pandas as pd

from core.errors import PromotionRefusedError
from core.settings import Settings
from core.spec import ModelSpec
from mlflow_server.api.pages import CARD, Pages
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Run, Tracking
from mlflow_server.model.pyfunc import ModelFile, read_files
from mlflow_server.model.registration import register as register_version
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.promote import promote as put_into_role
from mlflow_server.promotion.promote import reconcile
from mlflow_server.roles import PRODUCTION, SHADOW
from training.artifacts import CANDIDATE, artifact_bytes, fetched_artifact
from training.data.lineage import lineage
from training.evaluation.results import load_evaluation

NATIVE = ("pandas", "scikit-learn", "skl2onnx", "skops", "xgboost-cpu", "lightgbm")
"""Packages with which a client of MLflow loads a version that is not ONNX, if they are installed."""
DESCRIBED = ("log_loss", "auc", "f1", "rmse", "mae", "r2")
"""Metrics in the description of a version, if the task has them."""
UNREGISTERED = "<b>VERSION</b>"
"""Place of the version in a model card: no text of a user has such an element."""
MINUTE_FORMAT = "%Y-%m-%d %H:%M"


def register(settings: Settings, spec: ModelSpec, run_id: str) -> str:
    """Register the challenger, with the threshold that it was measured at; return the version."""
    tracking = Tracking(settings)
    run = tracking.run(run_id)
    with fetched_artifact(tracking, run_id, CANDIDATE) as candidate:
        manifest, model = read_files(candidate, spec.trusted_types)
        registered = register_version(
            settings,
            model=spec.name,
            run_id=run_id,
            exported=model,
            files=candidate,
            input_example=pd.DataFrame([manifest.defaults], columns=[*spec.features]),
            tags=lineage(run),
            description=_description(run),
            requirements=_requirements(model),
        )
    tracking.log(run_id, tags={"version": registered.version})
    card = artifact_bytes(tracking, run_id, CARD).decode()
    card = card.replace(UNREGISTERED, f"<b>{registered.version}</b>")
    tracking.log_text(run_id, card, CARD)
    if spec.promotion.approval:
        tracking.end(run_id, _waits(registered.version))
    return registered.version


def _waits(version: str) -> str:
    return f"version {version} is registered and waits for approval"


def _requirements(model: ModelFile) -> list[str]:
    packages = ["onnxruntime"] if model.loader == "mlflow.onnx" else NATIVE
    requirements = []
    for package in ("mlflow", *packages):
        with suppress(metadata.PackageNotFoundError):
            requirements.append(f"{package}=={metadata.version(package)}")
    return requirements


def _description(run: Run) -> str:
    metrics = []
    for name in DESCRIBED:
        if f"test/{name}" in run.metrics:
            value = run.metrics[f"test/{name}"]
            baseline = run.metrics[f"baseline/{name}"]
            metrics.append(f"{name.replace('_', ' ')} {value:.4f} ({baseline:.4f})")
    measured = (
        f"tested on {int(run.params['test_rows']):,} rows at {run.params['test_snapshot']}, "
        f"in brackets the best constant: {', '.join(metrics)}"
    )
    if not metrics:
        measured = "not measured, as there are no labels"
    return (
        f"As of {run.tags['as_of'][:10]}: {measured}. "
        f"More: {CARD} of its run. Reason: {run.tags['reason']}."
    )


def promote_challenger(
    settings: Settings,
    spec: ModelSpec,
    run_id: str,
    version: str,
    *,
    who: str,
    reason: str,
) -> str:
    """Put the version into production in place of the champion it was compared with.

    With a canary it becomes the shadow; the first version of all goes into production. A run whose
    `as_of` is older than the newest promotion never promotes. A call that is repeated after a kill
    finds its own promotion.

    Returns:
        One line on the outcome.

    Raises:
        PromotionRefusedError: Production is no longer the champion.

    """
    tracking = Tracking(settings)
    registry = Registry(settings)
    with Ledger(settings) as ledger:
        # Finishes what a killed try began.
        rows = reconcile(registry, ledger, spec.name)
        outcome = _settled(rows, tracking.run(run_id), version)
        if outcome is None:
            champion = load_evaluation(tracking, run_id).champion_version
            put = partial(
                put_into_role,
                registry,
                ledger,
                spec.name,
                version,
                who=who,
                why=reason,
                evidence=f"runs:/{run_id}",
            )
            if _begins_rollout(spec, champion):
                current = registry.production(spec.name)
                if current != champion:
                    raise PromotionRefusedError(
                        f"{spec.name}: production is version {current}, and version {version} was "
                        f"compared with version {champion}"
                    )
                row = put(role=SHADOW, action="rollout")
            else:
                row = put(replaces=champion)
            outcome = _promoted(row)
    tracking.end(run_id, outcome)
    return outcome


def version_of(settings: Settings, spec: ModelSpec, run_id: str) -> str:
    """Return the version that a training registered.

    Raises:
        PromotionRefusedError: The training registered no version, or the model was made anew.
        RegistryError: MLflow does not answer, or has no such version.

    """
    version = Tracking(settings).run(run_id).tags.get("version")
    if version and Registry(settings).version(spec.name, version).run_id == run_id:
        return version
    raise PromotionRefusedError(
        f"{spec.name}: MLflow run {run_id} registered no version of it"
    )


def settled(
    settings: Settings, spec: ModelSpec, run_id: str, version: str
) -> str | None:
    """Return why no promotion will follow; None if one will.

    The version was promoted already, or the run's `as_of` is too old.
    """
    with Ledger(settings) as ledger:
        rows = reconcile(Registry(settings), ledger, spec.name)
    return _settled(rows, Tracking(settings).run(run_id), version)


def _settled(rows: Sequence[LedgerRow], run: Run, version: str) -> str | None:
    applied = [row for row in rows if row.applied_at]
    for row in reversed(applied):
        if row.evidence == f"runs:/{run.run_id}":
            return _promoted(row)
    promotions = [row for row in applied if row.role == PRODUCTION]
    if any(row.to_version == version for row in promotions):
        return f"version {version} was put into production before"
    as_of = datetime.fromisoformat(run.tags["as_of"])
    if promotions and as_of < promotions[-1].time:
        newest = promotions[-1]
        return (
            f"version {version} is registered and not promoted: its as_of {as_of:{MINUTE_FORMAT}} is "
            f"older than the promotion of version {newest.to_version} at {newest.time:{MINUTE_FORMAT}} "
            f"by {newest.who}"
        )
    return None


def _promoted(row: LedgerRow) -> str:
    if row.role == SHADOW:
        return (
            f"version {row.to_version} is the shadow, the first step of its rollout: "
            f"rollout_{row.model} goes on"
        )
    before = f"in place of {row.from_version}" if row.from_version else "the first one"
    return f"version {row.to_version} is in production, {before}"


def _begins_rollout(spec: ModelSpec, champion: str | None) -> bool:
    return champion is not None and spec.rollout.policy == "canary"


def ask(
    settings: Settings, spec: ModelSpec, run_id: str, version: str
) -> tuple[str, str]:
    """Note in the run that the version waits; return subject and Markdown of the question."""
    tracking = Tracking(settings)
    champion = load_evaluation(tracking, run_id).champion_version
    tags = tracking.run(run_id).tags
    tracking.end(run_id, _waits(version))
    place = f"in place of version {champion}" if champion else "as the first one"
    subject = f"Put version {version} of {spec.name} into production, {place}?"
    if _begins_rollout(spec, champion):
        subject = (
            f"Begin the rollout of version {version} of {spec.name} beside {champion}?"
        )
    card = f"{Pages(settings).run(run_id)}/artifacts/{CARD}"
    paragraphs = [
        f"Trained as of {tags['as_of']}; it passed every gate. The reason given:",
        f"    {' '.join(tags['reason'].split())}",  # as code: anybody's words, and no Markdown
        f"[Model card]({card}): its metrics beside the champion's",
    ]
    return subject, "\n\n".join(paragraphs)


def wait_in_shell(
    settings: Settings, spec: ModelSpec, run_id: str, version: str
) -> str:
    """Note in the run that the version waits; return one line on how to approve it in a shell."""
    tracking = Tracking(settings)
    champion = load_evaluation(tracking, run_id).champion_version
    replaces = f"--replaces {champion or 'none'}"
    where = "--rollout" if _begins_rollout(spec, champion) else replaces
    outcome = (
        f"{_waits(version)}: gyre promote {spec.name} {version} {where} --reason …, or (Airflow 3.1 or "
        f"newer) in Airflow approve_{spec.name} for MLflow run {run_id}"
    )
    tracking.end(run_id, outcome)
    return outcome


def not_approved(
    settings: Settings, spec: ModelSpec, run_id: str, version: str, why: str
) -> str:
    """Note in the run that the version keeps its role; return the outcome.

    A version that was promoted past the question is not "not approved".
    """
    reason = settled(settings, spec, run_id, version)
    outcome = reason or f"not approved: version {version}: {why}"
    Tracking(settings).end(run_id, outcome)
    return outcome

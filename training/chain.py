"""A whole training in one process; dags/train.py runs the same stages as tasks."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from core.errors import SettingsError
from core.settings import Settings
from core.spec import ModelSpec
from mlflow_server.api.tracking import Tracking
from training.runs import NOTHING_NEW, open_run
from training.stages import STAGES, Stage
from training.stages.register import promote_challenger, wait_in_shell


@dataclass(frozen=True)
class TrainReport:
    """How a training run ended. run_id is None when there was nothing new to learn."""

    model: str
    as_of: datetime
    run_id: str | None
    version: str | None
    outcome: str


def train(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    *,
    key: str,
    reason: str,
    who: str,
    force: bool = False,
) -> TrainReport:
    """Train, evaluate, gate, register and promote; `open_run` explains the arguments.

    An error on the way becomes the outcome of the MLflow run, which is marked as failed.
    """
    if not spec.is_trained_here:
        raise SettingsError(
            f"{spec.name}.toml has no [[estimators]] and no [training]: expected one of them, or "
            f"versions that come from {spec.command}"
        )
    run_id = open_run(
        settings,
        spec,
        as_of,
        key=key,
        reason=reason,
        who=who,
        force=force,
    )
    if run_id is None:
        return TrainReport(spec.name, as_of, None, None, NOTHING_NEW)
    return run_stages(settings, spec, as_of, run_id, STAGES, who=who, reason=reason)


def run_stages(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    run_id: str,
    stages: Iterable[Stage],
    *,
    who: str,
    reason: str,
) -> TrainReport:
    """Run stages on an open run, and promote what passes its gates; `open_run` explains the rest."""
    with Tracking(settings).on_record(run_id):
        for stage in stages:
            result = stage.run(settings, spec, run_id)
            if stage.is_gate and result:
                return TrainReport(spec.name, as_of, run_id, None, f"refused: {result}")
        version = str(result)
        if spec.promotion.approval:
            outcome = wait_in_shell(settings, spec, run_id, version)
        else:
            outcome = promote_challenger(
                settings, spec, run_id, version, who=who, reason=reason
            )
    return TrainReport(spec.name, as_of, run_id, version, outcome)

"""The stages in order, in one process; dags/train.py runs the same functions as tasks."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core.settings import Settings
from core.spec import ModelSpec
from mlflow_server.tracking import Tracking
from training.dataset import dataset
from training.evaluate import evaluate
from training.gate import gate
from training.register import promote, register, wait_in_shell
from training.train import fit
from training.validate import NOTHING_NEW, open_run


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
    reason: str,
    who: str,
    **origin: Any,
) -> TrainReport:
    """Run the whole chain in this process. reason, who, origin: as `open_run` takes them.

    Whatever ends it on its way is the outcome of its MLflow run, which has failed.
    """
    run_id = open_run(settings, spec, as_of, reason=reason, who=who, **origin)
    if run_id is None:
        return TrainReport(spec.name, as_of, None, None, NOTHING_NEW)
    with Tracking(settings).on_record(run_id):
        for stage in (dataset, fit, evaluate):
            stage(settings, spec, run_id)
        if refused := gate(settings, spec, run_id):
            return TrainReport(spec.name, as_of, run_id, None, f"refused: {refused}")
        version = register(settings, spec, run_id)
        if spec.promotion.approval:
            outcome = wait_in_shell(settings, spec, run_id, version)
        else:
            outcome = promote(settings, spec, run_id, version, who=who, reason=reason)
    return TrainReport(spec.name, as_of, run_id, version, outcome)

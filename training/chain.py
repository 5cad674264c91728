"""The stages in order, in one process; each is safe to repeat.

Airflow's tasks (dags/train.py) run the same functions one by one, each importing its own stage.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mlflow_server.tracking import Tracking
from training.approval import wait_in_shell
from training.dataset import dataset
from training.evaluate import evaluate
from training.gate import gate
from training.register import promote, register
from training.train import fit
from training.validate import NOTHING_NEW, open_run

if TYPE_CHECKING:
    from datetime import datetime

    from stack.settings import Settings
    from stack.spec import ModelSpec


@dataclass(frozen=True)
class TrainReport:
    """How a training run ended. run_id is None when there was nothing new to learn."""

    model: str
    as_of: datetime
    run_id: str | None
    version: str | None
    outcome: str

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"as_of": self.as_of.isoformat()}


def train(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    *,
    key: str,
    reason: str,
    who: str,
    cause: str | None = None,
    force: bool = False,
) -> TrainReport:
    """Run the whole chain in this process; what is given is `open_run`'s.

    Whatever ends it on its way is the outcome of its MLflow run, which has failed.
    """
    run_id = open_run(
        settings, spec, as_of, key=key, reason=reason, who=who, cause=cause, force=force
    )
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

"""The stages of a training between its start and its promotion, in order.

`training.chain` runs them in one process, dags/train.py as tasks. What comes before them is
`training.runs.open_run`, what comes after them approval and
`training.stages.register.promote`.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from core.settings import Settings
from core.spec import ModelSpec


@dataclass(frozen=True)
class Stage:
    """A function of settings, spec and MLflow run.

    Attributes:
        name: Id of the task.
        title: What Airflow shows.
        function: Its path: imported when it runs, as each one's libraries take seconds.
        is_gate: Whether it returns why the run ends here, or None to go on.

    """

    name: str
    title: str
    function: str
    is_gate: bool = False

    def run(self, settings: Settings, spec: ModelSpec, run_id: str) -> Any:
        """Return what the function returns."""
        return resolve_name(self.function)(settings, spec, run_id)


STAGES = (
    Stage("dataset", "Build the dataset", "training.stages.dataset:dataset"),
    Stage("train", "Fit the estimators", "training.stages.train:fit"),
    Stage(
        "evaluate", "Evaluate beside production", "training.stages.evaluate:evaluate"
    ),
    Stage("gate", "Pass the gates", "training.stages.gate:gate", is_gate=True),
    Stage("register", "Register the version", "training.stages.register:register"),
)
"""The last one returns the version."""

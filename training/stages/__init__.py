"""The stages of a training between its start and its promotion, in order.

`training.chain` runs them in one process, dags/train.py as tasks. `training.runs.open_run` comes
before them; approval and `training.stages.register.promote_challenger` follow.
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
        title: Title of the task in Airflow.
        function: Path of the function. A string, as Airflow parses this module and the function's
            libraries take seconds to import, and as `training.code_hash` follows the imports of its
            module.
        is_gate: Whether it returns why the run ends here, or None to go on.
        makes_model: Whether its code, with all that it imports, decides on the model's files.

    """

    name: str
    title: str
    function: str
    is_gate: bool = False
    makes_model: bool = False

    def run(self, settings: Settings, spec: ModelSpec, run_id: str) -> Any:
        """Return what the function returns."""
        return resolve_name(self.function)(settings, spec, run_id)


STAGES = (
    Stage(
        "dataset",
        "Build the dataset",
        "training.stages.dataset:dataset",
        makes_model=True,
    ),
    Stage("train", "Fit the estimators", "training.stages.train:fit", makes_model=True),
    Stage(
        "evaluate", "Evaluate beside production", "training.stages.evaluate:evaluate"
    ),
    Stage("gate", "Pass the gates", "training.stages.gate:gate", is_gate=True),
    Stage("register", "Register the version", "training.stages.register:register"),
)
"""The last one returns the version."""

"""The summary of a training run for a pull request: its metrics beside its champion's, its gates."""

from dataclasses import dataclass
from pathlib import Path

import jinja2
from pydantic import TypeAdapter

from core.errors import RegistryError
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.training import LOWER_IS_BETTER
from mlflow_server.api.comparison import GATES
from mlflow_server.api.tracking import Tracking
from mlflow_server.tags import tag_equals
from training.artifacts import artifact_bytes
from training.evaluation.results import Evaluation, GateOutcome, load_evaluation

SUMMARY_PAGE: jinja2.Template = jinja2.Template(
    Path(__file__).with_name("summary.md").read_text("utf-8"),
    trim_blocks=True,
    lstrip_blocks=True,
)
GATE_OUTCOMES = TypeAdapter(dict[str, tuple[GateOutcome, ...]])


@dataclass(frozen=True)
class Summary:
    """A run that its gates have judged. version: None if they refused it."""

    model: str
    run_id: str
    as_of: str
    test_snapshot: str
    version: str | None
    evaluation: Evaluation
    gates: tuple[GateOutcome, ...]
    params: dict[str, str]

    def markdown(self) -> str:
        return SUMMARY_PAGE.render(vars(self), lower_is_better=LOWER_IS_BETTER)


def summary(settings: Settings, spec: ModelSpec, version: str | None = None) -> Summary:
    """Return the summary of `version`, by default of the newest run that its gates have judged.

    Raises:
        RegistryError: MLflow does not answer, or has no such run.

    """
    tracking = Tracking(settings)
    name = spec.name
    judged = tag_equals("version", version) if version else "tags.gate LIKE '%'"
    runs = tracking.runs(spec.experiment, judged)
    if not runs:
        which = (
            f"run of version {version}" if version else "run that its gates have judged"
        )
        raise RegistryError(f"{name}: MLflow has no {which}: {spec.command}")
    newest = runs[0]
    outcomes = GATE_OUTCOMES.validate_json(
        artifact_bytes(tracking, newest.run_id, GATES)
    )
    return Summary(
        model=name,
        run_id=newest.run_id,
        as_of=newest.tags["as_of"],
        test_snapshot=newest.params["test_snapshot"],
        version=newest.tags.get("version"),
        evaluation=load_evaluation(tracking, newest.run_id),
        gates=outcomes["gates"],
        params=newest.params,
    )

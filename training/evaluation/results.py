"""The results of an evaluation and of its gates, as the run stores them for later readers."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter

from mlflow_server.api.comparison import EVALUATION
from mlflow_server.api.tracking import Tracking
from training.artifacts import artifact_bytes
from training.evaluation.metrics import Interval, Segment
from training.evaluation.psi import UsualSpread


@dataclass(frozen=True)
class Evaluation:
    """The measurements of `evaluate` on the rows of the newest matured snapshots.

    Attributes:
        rows: Number of rows.
        challenger: Metrics of the challenger by name.
        baseline: Each metric of the best constant.
        champion_version: Version in production; None if there is none.
        champion: Metrics of the champion; empty if there is none to compare with.
        differences: Challenger minus champion, on the same resamples.
        unavailable: Why the champion could not be scored; gates that compare with it then refuse.
        threshold: Threshold of the challenger.
        intervals: Intervals of the challenger's metrics.
        figures: Figures of the challenger alone: calibration, fairness, agreement of the export.
        segments: Metrics of the challenger by value of the spec's segment.
        unproved: Why the served file failed the comparison with the fitted model.
        no_champion: Why the version in production cannot be the champion.
        contributions: Mean size of the contributions of each feature, the largest first.
        spread: How far normal windows lie from the rows.
        remarks: Remarks on features that may know the label, and on texts with too many values.
        class_rows: Number of rows of each class; empty for a regression.

    """

    rows: int
    challenger: dict[str, float]
    baseline: dict[str, float]
    champion_version: str | None
    champion: dict[str, float]
    differences: dict[str, Interval]
    unavailable: str | None = None
    threshold: float | None = 0.5
    intervals: dict[str, Interval] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    unproved: str = ""
    no_champion: str = ""
    contributions: dict[str, float] = field(default_factory=dict)
    spread: UsualSpread = field(default_factory=UsualSpread)
    remarks: tuple[str, ...] = ()
    class_rows: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GateOutcome:
    """The result of one gate."""

    rule: str
    metric: str
    passed: bool
    text: str


EVALUATIONS = TypeAdapter(Evaluation)


def load_evaluation(tracking: Tracking, run_id: str) -> Evaluation:
    """Return the evaluation that a run stored."""
    return EVALUATIONS.validate_json(artifact_bytes(tracking, run_id, EVALUATION))

"""The results of an evaluation and of its gates, as the run stores them for later readers."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter

from mlflow_server.api.tracking import Tracking
from training.artifacts import EVALUATION, read
from training.evaluation.metrics import Interval, Segment
from training.evaluation.psi import UsualSpread


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured on the rows of the newest matured snapshots.

    Attributes:
        rows: How many.
        challenger: Its metrics by name.
        baseline: For each metric the best constant's.
        champion_version: What is in production.
        champion: Its metrics; empty if there is none to compare with.
        differences: Challenger minus champion, on the same resamples.
        unavailable: Why the champion could not be scored; gates that ask for it then refuse.
        threshold: Of the challenger.
        intervals: Of its metrics.
        figures: Of the challenger alone: calibration, fairness, agreement of the export.
        segments: Its metrics by value of the spec's segment.
        unproved: Why the served file failed the comparison with the fitted model.
        no_champion: Why the version in production cannot be the champion.
        contributions: By feature the mean size of its contributions, the largest first.
        spread: How far normal windows lie from the rows.
        remarks: What looks as if the model knew its label, and texts that it does not see whole.
        class_rows: How many rows each class has; of numbers none.

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
    """One gate and what it says."""

    rule: str
    metric: str
    passed: bool
    text: str


EVALUATIONS = TypeAdapter(Evaluation)


def load_evaluation(tracking: Tracking, run_id: str) -> Evaluation:
    """Return what `evaluate` stored."""
    return EVALUATIONS.validate_json(read(tracking, run_id, EVALUATION))

"""What one check says of one thing, and what a monitoring run says in all."""

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import TypeAdapter

from monitoring.decision import Decision

Status = Literal["ok", "remark", "alert", "bad", "harmful", "unknown"]
SCORE, PREDICTED = "score", "predicted_class"


@dataclass(frozen=True)
class CheckResult:
    """One line of a monitoring run.

    name: of the figure that it is stored and shown as. value, limit: None where there is none.
    status: ok; remark: worth a word, nothing follows; alert: alerted of, never retrained for; bad:
    the window is bad; harmful: the version must go back; unknown: it could not be measured.
    remark: in words; empty if all is ok.
    kind, feature: of the alert (DriftAlert). incident: names an alert for as long as it lasts.
    """

    name: str
    value: float | None = None
    limit: float | None = None
    status: Status = "ok"
    remark: str = ""
    kind: str = ""
    feature: str = ""
    incident: str = ""

    def __post_init__(self) -> None:
        if self.status == "ok":
            object.__setattr__(self, "remark", "")


@dataclass(frozen=True)
class MonitorReport:
    """One run on one model. version is None where nothing is in production.

    left_out: predictions of the window, outcomes_left_out: lines of feedback that do not count, by
    why. malformed: lines of the logs that are no rows.
    """

    model: str
    as_of: datetime
    version: str | None
    verdict: str
    decision: Decision
    cause: str = ""
    entities: int = 0
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    outcomes_left_out: dict[str, int] = field(default_factory=dict)
    malformed: int = 0

    def summary(self) -> str:
        """Say in one line what was seen and what follows."""
        return (
            f"{self.model} version {self.version}: {self.verdict} on {self.entities} entities; "
            f"{self.decision.action} ({self.decision.rule}): {self.decision.reason}"
        )

    def retraining_reason(self) -> str:
        """Say what a retraining would answer and why, for run and ledger."""
        return f"{self.cause}: {self.decision.reason}"


REPORTS = TypeAdapter(MonitorReport)


def by_chance(share: float, rows: float, standard_errors: float) -> float:
    """How far the share of so many rows may be from what it is of all of them, by chance alone."""
    return standard_errors * math.sqrt(share * (1 - share) / rows)

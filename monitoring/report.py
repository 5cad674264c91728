"""What one look at a model says, as it is told, stored and handed on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  (pydantic reads the annotations)

from pydantic import TypeAdapter

from monitoring.decision import Decision  # noqa: TC001


@dataclass(frozen=True)
class MonitorReport:
    """One look at one model. version is None where nothing is in production.

    left_out: predictions of the window, by why (window.py). outcomes_left_out: lines of feedback,
    by why (feedback.py). malformed: lines of the logs that are no rows (collect.py).
    """

    model: str
    as_of: datetime
    version: str | None
    verdict: str
    decision: Decision
    cause: str
    entities: int
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    figures: dict[str, float]
    left_out: dict[str, int]
    outcomes_left_out: dict[str, int]
    malformed: int

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

"""What one check of a monitoring run found."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "alert", "bad", "harmful", "unknown"]
"""note: worth a word, nothing follows. alert: somebody is told, nothing else follows. bad: the
window is bad, which may start a retraining. harmful: the version goes back. unknown: it could not
be measured, and somebody is told."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One line of a monitoring run.

    Attributes:
        name: The figure: a group, a slash, and its subject, such as `psi/total_spend_30d`. The
            metric in MLflow has the same name.
        kind: The kind of problem, such as `data_drift`. `monitor_only` of the spec may name it.
        status: See `Status`.
        value: The figure; None where it is not known.
        limit: The value from which the status is not ok; None where there is no limit.
        words: One sentence for a person. Entity keys and feature values stay out of it.
        remedy: What to do, with a command where there is one; empty where nothing is to be done.
        link: A page that shows more: of the console, such as `/status/MODEL#checks`, or of another
            program, such as `airflow/dags/ingest/runs`.
        feature: The feature, metric or dataset that it is of.
        incident: The name of an alert, the same for as long as the problem lasts.
        acts: False where `monitor_only` names its feature, kind or name: it decides nothing.
        reason: Why it does not act, in the words of the spec.

    """

    name: str
    kind: str
    status: Status = "ok"
    value: float | None = None
    limit: float | None = None
    words: str = ""
    remedy: str = ""
    link: str = ""
    feature: str = ""
    incident: str = ""
    acts: bool = True
    reason: str = ""

    def distance(self) -> float | None:
        """Return how far the value is from its limit, as a share of it; None: one is unknown.

        A limit may be the most or the least.
        """
        if self.value is None or self.limit is None:
            return None
        return abs(self.value - self.limit) / (abs(self.limit) or 1)


def farthest_from_limit(results: Iterable[CheckResult]) -> CheckResult | None:
    """Return the result that is farthest from its limit, the first of several; None of none."""
    return max(results, key=lambda result: result.distance() or 0.0, default=None)

"""The result of one check of a monitoring run."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan
from typing import Literal

Status = Literal["ok", "note", "alert", "bad", "harmful", "unknown"]
"""note: shown, and nothing follows. alert: an alert goes out, and nothing else follows. bad: the
window is bad, which may start a retraining. harmful: the version is rolled back. unknown: the value
could not be measured, and an alert goes out."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of a check: a figure and its consequence.

    Attributes:
        name: Name of the figure: a group, a slash, and a subject, such as `psi/total_spend_30d`.
            The metric in MLflow has the same name.
        kind: Kind of problem, such as `data_drift`. `monitor_only` of the spec may name it.
        status: Meaning of the value: see `Status`.
        value: Value of the figure; None where it is not known.
        limit: The value from which the status is not ok; None where there is no limit.
        words: One sentence for a person. It names no entity key and no feature value.
        remedy: Advice, with a command where there is one; empty where nothing is to be done.
        link: A page that shows more: of the console, such as `/status/MODEL?tab=checks`, or of another
            program, such as `airflow/dags/ingest/runs`.
        feature: The feature, metric or dataset that the figure is about.
        incident: Name of the alert, the same for as long as the problem lasts.
        acts: False where `monitor_only` names feature, kind or name: then the result decides
            nothing.
        reason: Why the result does not act, in the words of the spec.

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
        """Return the distance of the value from its limit, above or below, as a share of the limit.

        It is None where value or limit is not known.
        """
        if self.value is None or self.limit is None:
            return None
        distance = abs(self.value - self.limit) / (abs(self.limit) or 1)
        return None if isnan(distance) else distance


def farthest_from_limit(results: Iterable[CheckResult]) -> CheckResult | None:
    """Return the first of the results that are farthest from their limits; None if none is given."""
    return max(results, key=lambda result: result.distance() or 0.0, default=None)

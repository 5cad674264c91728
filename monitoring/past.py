"""What ledger, decisions and runs tell of a version before a look at it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from mlflow_server.ledger import Ledger
from mlflow_server.reconcile import history, last_applied
from mlflow_server.records import Records
from mlflow_server.registry import PRODUCTION
from mlflow_server.tracking import Tracking
from monitoring.failures import COUNTS, Counted
from monitoring.window import LENGTH

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from mlflow_server.ledger import LedgerRow
    from mlflow_server.records import DecisionRow
    from mlflow_server.tracking import Run
    from stack.settings import Settings
    from stack.spec import ModelSpec

WHO = "monitor"
"""Who, in the ledger."""
MACHINES = {WHO, "airflow:asset_triggered", "airflow:backfill", "airflow:scheduled"}
"""Who promotes without a person; what a person promotes is their answer to an escalation."""
DECISIVE = ("log_loss", "rmse")
"""Of a class, and of a number: what tells whether a training helped; the lower the better."""
STRETCH = timedelta(hours=1)
"""Failures and latency are of at least so long, or since the promotion: looks may follow fast."""


@dataclass(frozen=True)
class Past:
    """Decisions are the newest of the model before `as_of`, so without an earlier try of this look.

    promotion: of what is in production. previous: the version to go back to. retrained: decisions
    to retrain, of which `tried` are those whose training has ended since a window was last ok, a
    person promoted, or a training helped.
    """

    version: str
    as_of: datetime
    promotion: LedgerRow | None
    previous: str | None
    decisions: list[DecisionRow]
    retrained: list[DecisionRow]
    tried: tuple[datetime, ...]

    @property
    def own(self) -> list[DecisionRow]:
        """Those of this version since its promotion."""
        since = self.promotion.time if self.promotion else None
        return [
            row
            for row in self.decisions
            if row.version == self.version and not (since and row.as_of < since)
        ]

    def usual(self) -> list[float]:
        """Entities of this version's windows that share no hour with the one that ends now."""
        before = [row for row in self.own if row.as_of <= self.as_of - LENGTH]
        return [row.figures["entities"] for row in before]

    def counted(self, now: Mapping[str, Counted]) -> Counted:
        """What the version in production did of late, of what serving has counted up to now."""
        key = f"{PRODUCTION} {self.version}"
        latest = self.as_of - STRETCH
        if self.promotion:
            latest = max(latest, self.promotion.time)
        for row in reversed(self.decisions):
            if row.counted and row.as_of <= latest:
                before = COUNTS.validate_json(row.counted)
                return now.get(key, Counted()).since(before.get(key, Counted()))
        return now.get(key, Counted())


def load_past(settings: Settings, spec: ModelSpec, version: str, as_of: datetime) -> Past:
    """Read all of it.

    Raises:
        RegistryError: a store does not answer.

    """
    with closing(Ledger(settings)) as ledger, closing(Records(settings)) as records:
        rows = ledger.rows(spec.name)
        decisions = [row for row in records.decisions(spec.name) if row.as_of < as_of]
        retrained = [
            row for row in records.decisions(spec.name, action="retrain") if row.as_of != as_of
        ]
        ok = [row.as_of for row in records.decisions(spec.name, verdict="ok") if row.as_of < as_of]
    before = [row for row in retrained if row.as_of < as_of]
    runs = Tracking(settings).runs(spec.experiment) if before else []
    helped = {f"runs:/{run.run_id}" for run in runs if surely_better(run.metrics)}
    return Past(
        version, as_of, last_applied(rows, PRODUCTION), previous(rows, version),
        decisions, retrained, _ended(runs, unsolved(before, ok, rows, helped)),
    )  # fmt: skip


def surely_better(metrics: Mapping[str, float]) -> bool:
    """Whether a run's version beat the one then in production, on the same rows, beyond chance."""
    upper = (metrics.get(f"{name}_minus_champion_upper", 0.0) for name in DECISIVE)
    return any(each < 0 for each in upper)


def unsolved(
    retrained: Sequence[DecisionRow],
    ok: Sequence[datetime],
    rows: Sequence[LedgerRow],
    helped: Collection[str],
) -> list[DecisionRow]:
    """Of `retrained`, those since a window was last ok, a person promoted, or a training helped.

    ok: oldest first. helped: runs whose version was surely better, as the ledger's evidence.
    """
    promoted = [row for row in rows if row.role == PRODUCTION and row.state == "applied"]
    answers = [
        row.time
        for row in promoted
        if row.who not in MACHINES or (row.who != WHO and row.evidence in helped)
    ]
    anew = max([*ok[-1:], *answers], default=None)
    return [row for row in retrained if not (anew and row.as_of <= anew)]


def previous(rows: Sequence[LedgerRow], version: str) -> str | None:
    """The version before `version` in production, of those that no monitor has gone back from."""
    harmful = {
        row.from_version
        for row in rows
        if row.role == PRODUCTION and row.who == WHO and row.state == "applied"
    }
    before = [each for each in history(rows) if each != version and each not in harmful]
    return before[-1] if before else None


def _ended(runs: Sequence[Run], retrained: Sequence[DecisionRow]) -> tuple[datetime, ...]:
    """When those were decided whose training has ended, well or not."""
    ended = {
        (run.tags.get("cause"), run.tags.get("as_of")) for run in runs if run.status != "RUNNING"
    }
    return tuple(row.as_of for row in retrained if (row.cause, row.as_of.isoformat()) in ended)

"""What ledger, decisions and runs tell of a version before a look at it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from mlflow_server.ledger import Ledger
from mlflow_server.records import Records
from mlflow_server.registry import PRODUCTION
from mlflow_server.roles import history, last_applied
from mlflow_server.tracking import Tracking
from monitoring.failures import COUNTS, Counted
from monitoring.verdict import FEWEST_WINDOWS, collapse
from monitoring.window import LENGTH
from stack.spec import LOSSES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from mlflow_server.ledger import LedgerRow
    from mlflow_server.records import DecisionRow
    from mlflow_server.registry import Version
    from mlflow_server.tracking import Run
    from stack.settings import Settings
    from stack.spec import ModelSpec

WHO = "monitor"
"""Who, in the ledger."""
MACHINES = {WHO, "rollout", "airflow:asset_triggered", "airflow:backfill", "airflow:scheduled"}
"""Who promotes without a person; what a person promotes is their answer to an escalation."""
ASKED, USUAL = "asked", "usual"
"""Figures: entities that asked in the window, and how many do. `entities` may be batch scores."""
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

    def usual(self) -> float | None:
        """Entities that ask this version in 24 hours; None where too few windows tell.

        The mean of windows that share no hour with the one that ends now. In a collapse what was
        usual when it began: it would else be usual by and by that nobody asks.
        """
        for row in self.own[-1:]:
            if collapse(_asked(row), row.figures.get(USUAL)):
                return row.figures[USUAL]
        before = [_asked(row) for row in self.own if row.as_of <= self.as_of - LENGTH]
        return sum(before) / len(before) if len(before) >= FEWEST_WINDOWS else None

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


def _asked(row: DecisionRow) -> float:
    return row.figures.get(ASKED, row.figures["entities"])


def load_past(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    registered: Sequence[Version],
    as_of: datetime,
) -> Past:
    """Read all of it. registered: every version that MLflow has.

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
    better = {run.run_id for run in runs if surely_better(spec, run.metrics)}
    helped = {each.version for each in registered if each.run_id in better}
    back_to = previous(rows, version, {each.version for each in registered})
    return Past(
        version, as_of, last_applied(rows, PRODUCTION), back_to, decisions, retrained,
        _ended(runs, unsolved(before, ok, rows, helped)),
    )  # fmt: skip


def surely_better(spec: ModelSpec, metrics: Mapping[str, float]) -> bool:
    """Whether a run's version beat the one then in production, on the same rows, beyond chance."""
    return metrics.get(f"{LOSSES[spec.task]}_minus_champion_upper", 0.0) < 0


def unsolved(
    retrained: Sequence[DecisionRow],
    ok: Sequence[datetime],
    rows: Sequence[LedgerRow],
    helped: Collection[str],
) -> list[DecisionRow]:
    """Of `retrained`, those since a window was last ok, a person promoted, or a training helped.

    ok: oldest first. helped: versions that were surely better.
    """
    promoted = [row for row in rows if row.role == PRODUCTION and row.applied_at]
    answers = [
        row.time
        for row in promoted
        if row.who not in MACHINES or (row.who != WHO and row.to_version in helped)
    ]
    anew = max([*ok[-1:], *answers], default=None)
    return [row for row in retrained if not (anew and row.as_of <= anew)]


def previous(rows: Sequence[LedgerRow], version: str, there: Collection[str]) -> str | None:
    """The version before `version` in production, of those that are `there`.

    None that a monitor has gone back from.
    """
    harmful = {
        row.from_version
        for row in rows
        if row.role == PRODUCTION and row.who == WHO and row.applied_at
    }
    able = (each for each in history(rows) if each in there and each not in harmful)
    before = [each for each in able if each != version]
    return before[-1] if before else None


def _ended(runs: Sequence[Run], retrained: Sequence[DecisionRow]) -> tuple[datetime, ...]:
    """When those were decided whose training has ended, well or not."""
    ended = {
        (run.tags.get("cause"), run.tags.get("as_of")) for run in runs if run.status != "RUNNING"
    }
    return tuple(row.as_of for row in retrained if (row.cause, row.as_of.isoformat()) in ended)

"""What is known of the loop of one model beside its predictions: rows, runs, freshness, roles.

Read by the keeper when a page or the metrics are asked for. What does not answer is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlflow_server.ledger import Ledger
from mlflow_server.pages import Pages
from mlflow_server.records import Records
from mlflow_server.registry import PRODUCTION, Registry
from mlflow_server.roles import last_applied
from serving.observed import Reading, ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from feature_repo.freshness import Freshness
    from mlflow_server.ledger import LedgerRow
    from mlflow_server.pages import RunPage
    from mlflow_server.records import DecisionRow
    from serving.announcement import ModelState
    from serving.keeper import Follower
    from serving.observed import Observed
    from stack.settings import Settings
    from stack.spec import ModelSpec

ROWS_SECONDS, RUNS_SECONDS = 1.0, 30.0
RARE = ("alert", "retrain", "rollback")
"""Actions whose newest decision may be older than the rows that are read."""
OPEN = timedelta(hours=24)
"""An alert is open for so long after its cause was last seen."""
REPORTS, REPORT, CARD = "reports", "report.html", "model_card.html"
STAMP = "%Y-%m-%dT%H%M%S"


@dataclass(frozen=True)
class Rows:
    """What the database says. ledger, decisions: oldest first. last: newest decision by action."""

    ledger: Sequence[LedgerRow]
    decisions: Sequence[DecisionRow]
    last: Mapping[str, datetime]
    alerts: Sequence[Mapping[str, Any]]

    @property
    def promotion(self) -> LedgerRow | None:
        return last_applied(self.ledger, PRODUCTION)

    def open_alerts(self, now: datetime) -> list[Mapping[str, Any]]:
        recent = [a for a in self.alerts if now - datetime.fromisoformat(a["last"]) <= OPEN]
        return [alert for alert in recent if not alert.get("over")]

    @property
    def undelivered(self) -> list[Mapping[str, Any]]:
        return [alert for alert in self.alerts if not alert["delivered"]]


@dataclass(frozen=True)
class Runs:
    """What MLflow says: the newest training, the run of the version in production, its monitor's.

    reports: addresses of Evidently's pages, by the moment that each is about (`STAMP`).
    """

    training: RunPage | None
    production: RunPage | None = None
    has_card: bool = False
    monitoring: RunPage | None = None
    reports: Mapping[str, str] = field(default_factory=dict)

    @property
    def card(self) -> str | None:
        return self.production.artifact(CARD) if self.production and self.has_card else None


@dataclass(frozen=True)
class Known:
    """Everything known of a model; `state` is what the keeper announces to the workers."""

    spec: ModelSpec
    state: ModelState
    aliases: Observed[Mapping[str, str]]
    freshness: Observed[Freshness]
    rows: Observed[Rows]
    runs: Observed[Runs]


class Loop:
    """The readings of one model. Used by several threads."""

    def __init__(self, settings: Settings, follower: Follower) -> None:
        self._settings, self._follower = settings, follower
        self.name = follower.spec.name
        self._ledger: Ledger | None = None
        self._records: Records | None = None
        self._rows = Reading(self._read_rows, ROWS_SECONDS)
        self._runs = Reading(self._read_runs, RUNS_SECONDS)

    @property
    def readings(self) -> tuple[Reading[Any], ...]:
        return self._rows, self._runs

    def known(self) -> Known:
        """Return what was last read; `look` has it read first."""
        of = self._follower
        aliases, freshness = of.aliases.still(), of.freshness.still()
        return Known(of.spec, of.state, aliases, freshness, self._rows.last, self._runs.last)

    def close(self) -> None:
        for store in (self._ledger, self._records):
            if store is not None:
                store.close()

    def _read_rows(self) -> Rows:
        self._ledger = self._ledger or Ledger(self._settings)
        self._records = records = self._records or Records(self._settings)
        decisions = records.decisions(self.name)
        rare = [row for each in RARE for row in records.decisions(self.name, 1, action=each)]
        newest = sorted((*rare, *decisions), key=lambda row: row.as_of)
        last = {row.action: row.as_of for row in newest}
        return Rows(self._ledger.rows(self.name), decisions, last, records.alerts(self.name))

    def _read_runs(self) -> Runs:
        spec, pages, registry = self._follower.spec, Pages(self._settings), Registry(self._settings)
        training = pages.newest(spec.experiment, "tags.as_of LIKE '%'")
        version = registry.production(spec.name)
        if version is None:
            return Runs(training)
        run_id = registry.version(spec.name, version).run_id
        production = pages.run(run_id) if run_id else None
        has_card = production is not None and CARD in pages.folder(production.run_id)
        key = f"{spec.name} version {version}"
        monitoring = pages.of_key(f"{spec.experiment}_monitoring", key)
        reports = {
            name: monitoring.artifact(f"{REPORTS}/{name}/{REPORT}")
            for name in pages.folder(monitoring.run_id, REPORTS)
        } if monitoring else {}  # fmt: skip
        return Runs(training, production, has_card, monitoring, reports)


def look(loops: Sequence[Loop]) -> list[Known]:
    """Have everything read, and return what is known then."""
    ask([reading for loop in loops for reading in loop.readings])
    return [loop.known() for loop in loops]

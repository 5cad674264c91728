"""What ledger and decisions say of a version before a monitoring run."""

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta

from core.settings import Settings
from core.spec import ModelSpec
from core.timestamps import BEGINNING
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.records import DecisionRow, Records
from mlflow_server.registry import PRODUCTION, Version
from mlflow_server.roles import last_applied, ways_back
from monitoring.serving_status import COUNTS, Counted, Counters, did

WHO = "monitor"
"""Who, in the ledger."""


@dataclass(frozen=True)
class Past:
    """decisions: the newest of the model before `as_of`. promotion: of what is in production.

    previous: the version to go back to. retrained: decisions to retrain.
    """

    version: str
    as_of: datetime
    promotion: LedgerRow | None
    previous: str | None
    decisions: list[DecisionRow]
    retrained: list[DecisionRow]

    @property
    def own(self) -> list[DecisionRow]:
        """Those of this version since its promotion."""
        since = self.promotion.time if self.promotion else BEGINNING
        return [
            row
            for row in self.decisions
            if row.version == self.version and row.as_of >= since
        ]

    def counted(self, now: Counters, hours: float) -> Counted:
        """What the version in production did of what serving has counted up to now.

        hours: of at least so long, or since the promotion; runs may follow fast.
        """
        key = f"{PRODUCTION} {self.version}"
        began = self.promotion.time if self.promotion else BEGINNING
        latest = max(self.as_of - timedelta(hours=hours), began)
        before = [
            row.counted for row in self.decisions if row.counted and row.as_of <= latest
        ]
        then = COUNTS.validate_json(before[-1]) if before else {}
        return did(key, now, then)


def load_past(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    registered: Sequence[Version],
    as_of: datetime,
) -> Past:
    """registered: every version that MLflow has. Raises RegistryError: a store does not answer."""
    with closing(Ledger(settings)) as ledger, closing(Records(settings)) as records:
        rows = ledger.rows(spec.name)
        decisions = [row for row in records.decisions(spec.name) if row.as_of < as_of]
        retrained = [
            row
            for row in records.decisions(spec.name, action="retrain")
            if row.as_of != as_of
        ]
    back_to = previous(rows, {each.version for each in registered})
    promotion = last_applied(rows, PRODUCTION)
    return Past(version, as_of, promotion, back_to, decisions, retrained)


def previous(rows: Sequence[LedgerRow], there: Collection[str]) -> str | None:
    """The version before that in production, of those that are `there`.

    None that a monitor has gone back from.
    """
    promotions = (row for row in rows if row.role == PRODUCTION and row.applied_at)
    harmful = {row.from_version for row in promotions if row.who == WHO}
    return next((each for each in ways_back(rows) if each in {*there} - harmful), None)

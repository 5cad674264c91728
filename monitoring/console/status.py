"""Readers of all sources about a model. The console's process imports neither Feast nor MLflow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any

from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import dataset_names
from feature_engine.ingest.record import DatasetRecord, service_records
from mlflow_server.alerts import Alerts, alert_details, is_open
from mlflow_server.api.comparison import compare_versions
from mlflow_server.api.pages import DeletedExperiment, Pages, RunPage
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.rules import current, last_applied, of_newest_model
from mlflow_server.roles import ROLES
from monitoring.check import CheckResult
from monitoring.console.cached_reader import CachedReader, Reading
from monitoring.console.history import RANGES, read_history
from monitoring.decisions.store import (
    DecisionRow,
    newest_decisions,
    notable_decisions,
    stored_checks,
)

PAGES_SECONDS = 30
"""How long an answer about MLflow's runs and versions, and about the history, is new enough."""
MOST_COMPARISONS = 16
"""Number of pairs of versions of a model that are in memory."""
SHOWN_DECISIONS = 24
YEAR = timedelta(days=365)
Alert = Mapping[str, Any]
"""A row of the table of alerts."""
Stores = Callable[[], tuple[Ledger, Alerts]]
"""Opens both for all models at once, as connections are few."""
ServingStatuses = Mapping[str, Mapping[str, Any]]
"""The answer of /status of each replica by its address."""


@dataclass(frozen=True)
class ModelRows:
    """Rows about a model in ledger, decisions and alerts, the oldest first.

    Attributes:
        ledger: All rows of the ledger.
        decisions: The newest decisions.
        alerts: Alerts about the model and its datasets.
        results: Checks of the newest monitoring run.
        notable: Decisions of a year that acted or were bad: one of each action a day.

    """

    ledger: Sequence[LedgerRow]
    decisions: Sequence[DecisionRow]
    alerts: Sequence[Alert]
    results: Sequence[CheckResult] = ()
    notable: Sequence[DecisionRow] = ()

    def newest(self, role: str) -> LedgerRow | None:
        """Return the row that gave a role to the version that has it by the ledger."""
        return last_applied(self.ledger, role)

    @property
    def last_decision(self) -> DecisionRow | None:
        return self.decisions[-1] if self.decisions else None

    def last_moments(self) -> dict[str, datetime]:
        """Return the moment of the last decision of a year for each action."""
        rows = sorted([*self.notable, *self.decisions], key=lambda row: row.as_of)
        return {row.action: row.as_of for row in rows}

    def open_alerts(self, now: datetime) -> list[Alert]:
        """Return alerts that were seen lately; one about a version ends with the version's role."""
        versions = {None, *(current(self.ledger, role) for role in ROLES)}
        return [
            alert
            for alert in self.alerts
            if is_open(alert, now) and alert_details(alert).get("version") in versions
        ]


@dataclass(frozen=True)
class ModelStatus:
    """The readings of all sources about a model.

    Attributes:
        spec: The model.
        serving: The status of each replica.
        aliases: Versions by role, as MLflow has them.
        freshness: Records of the datasets that the model reads.
        rows: Rows of ledger, decisions and alerts.
        runs: The newest training; or a mark that its experiment is deleted.
        reproduced: By version, whether it was the same when it was last built again.

    """

    spec: ModelSpec
    serving: Reading[ServingStatuses]
    aliases: Reading[Mapping[str, str]]
    freshness: Reading[list[DatasetRecord]]
    rows: Reading[ModelRows]
    runs: Reading[RunPage | DeletedExperiment | None]
    reproduced: Reading[Mapping[str, bool]]

    def replicas(self) -> Iterator[Mapping[str, Any]]:
        """Yield the part about the model of each replica's status."""
        for status in (self.serving.value or {}).values():
            model = status["models"].get(self.spec.name)
            if model is not None:
                yield model

    def served_versions(self, role: str) -> list[str]:
        """Return the versions that replicas have in a role; two while one replica still loads."""
        versions = {replica["versions"].get(role) for replica in self.replicas()}
        return sorted(version for version in versions if version)

    def refused_versions(self) -> dict[str, str]:
        """Return the reason for each version that a replica refuses."""
        reasons: dict[str, str] = {}
        for replica in self.replicas():
            reasons |= replica["refused"]
        return reasons


def refusal_cause(version: str) -> str:
    """Return the cause of the alert that serving refuses a version."""
    return f"version {version} is refused"


class ModelReaders:
    """A cached reader for each source of one model.

    Attributes:
        spec: The model.
        sources: Readers that every page asks, by the field of `ModelStatus`.
        pages: Reader of MLflow's model cards, reports and versions.
        histories: Readers of checks over time, by the number of days.
        comparison: Returns the reader of a comparison of two versions, which stays right while
            MLflow does not answer.

    """

    def __init__(
        self,
        settings: Settings,
        spec: ModelSpec,
        serving: CachedReader[ServingStatuses],
        stores: Stores,
    ) -> None:
        """Make the readers, which read nothing yet; all models share `serving` and `stores`."""
        name = spec.name
        pages = Pages(settings)
        registry = Registry(settings)
        training = partial(pages.training, spec.experiment)
        freshness = partial(
            service_records, settings, spec.datasets, spec.feature_service
        )
        self.spec = spec
        self.sources: dict[str, CachedReader[Any]] = {
            "serving": serving,
            "aliases": CachedReader(partial(registry.aliases, name)),
            "freshness": CachedReader(freshness),
            "rows": CachedReader(partial(_model_rows, settings, stores, spec)),
            "runs": CachedReader(training, PAGES_SECONDS),
            "reproduced": CachedReader(
                partial(registry.reproduced, name), PAGES_SECONDS
            ),
        }
        self.pages = CachedReader(
            partial(pages.pages, name, spec.experiment), PAGES_SECONDS, keeps=True
        )
        self.histories = {
            days: CachedReader(
                partial(read_history, settings, name, days), PAGES_SECONDS
            )
            for days in RANGES
        }
        comparison = partial(_comparison, settings, name)
        self.comparison = lru_cache(MOST_COMPARISONS)(comparison)

    def status(self) -> ModelStatus:
        """Return the last readings."""
        readings = {name: reader.reading for name, reader in self.sources.items()}
        return ModelStatus(self.spec, **readings)


def _comparison(
    settings: Settings, model: str, *versions: str
) -> CachedReader[list[dict[str, Any]]]:
    read = partial(compare_versions, settings, model, *versions)
    return CachedReader(read, PAGES_SECONDS, keeps=True)


def _model_rows(settings: Settings, stores: Stores, spec: ModelSpec) -> ModelRows:
    ledger, alerts = stores()
    model = spec.name
    subjects = (*dataset_names(*spec.datasets), model)
    # The ledger knows the newest model of the name, even if MLflow does not answer.
    ledger_rows = of_newest_model(ledger.rows(model))
    created = ledger_rows[-1].created if ledger_rows else None
    decisions = newest_decisions(settings, model, SHOWN_DECISIONS, created=created)
    results: list[CheckResult] = []
    if decisions:
        newest = decisions[-1].as_of
        results = stored_checks(settings, model, [newest]).get(newest, [])
    return ModelRows(
        ledger=ledger_rows,
        decisions=decisions,
        alerts=[row for subject in subjects for row in alerts.rows(subject)],
        results=results,
        notable=notable_decisions(settings, model, datetime.now(UTC) - YEAR),
    )

"""What is known of the loop. This process imports neither Feast nor MLflow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import dataset_names
from feature_engine.ingest.record import DatasetRecord, service_records
from mlflow_server.alerts import DRIFT_ALERTS, Alerts, DriftAlert, is_open
from mlflow_server.api.pages import DeletedExperiment, Pages, RunPage
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.rules import last_applied, of_newest_model
from mlflow_server.roles import ROLES
from monitoring.check import CheckResult
from monitoring.console.cached_reader import CachedReader, Reading
from monitoring.console.history import read_history
from monitoring.decisions.store import (
    DecisionRow,
    newest_decisions,
    notable_decisions,
    stored_checks,
)

PAGES_SECONDS = 30
"""How long an answer is good enough: of the database's tables, and of MLflow's runs."""
SHOWN_DECISIONS = 24
YEAR = timedelta(days=365)
Alert = Mapping[str, Any]
"""A row of the table of alerts."""
Stores = Callable[[], tuple[Ledger, Alerts]]
"""Opens both once, for all models: connections count."""
ServingStatuses = Mapping[str, Mapping[str, Any]]
"""The answer of /status of each replica, by its address."""


def alert_details(alert: Alert) -> DriftAlert | None:
    """Return what an alert says of a model, None where it is about something else."""
    text = alert["details"]
    return DRIFT_ALERTS.validate_json(text) if text else None


@dataclass(frozen=True)
class ModelRows:
    """What ledger, decisions and alerts say of a model, oldest first.

    Attributes:
        ledger: All rows.
        decisions: The newest.
        alerts: Of the model and of its datasets.
        results: Of the newest monitoring run.
        notable: Of each day of a year in which a decision acted or was bad, one of each action.

    """

    ledger: Sequence[LedgerRow]
    decisions: Sequence[DecisionRow]
    alerts: Sequence[Alert]
    results: Sequence[CheckResult] = ()
    notable: Sequence[DecisionRow] = ()

    def newest(self, role: str) -> LedgerRow | None:
        """Return the row that put into `role` what the ledger says is there."""
        return last_applied(self.ledger, role)

    @property
    def last_decision(self) -> DecisionRow | None:
        return self.decisions[-1] if self.decisions else None

    def last_moments(self) -> dict[str, datetime]:
        """Return when each action was last decided, within a year."""
        rows = sorted([*self.notable, *self.decisions], key=lambda row: row.as_of)
        return {row.action: row.as_of for row in rows}

    def open_alerts(self, now: datetime) -> list[Alert]:
        """Return alerts seen of late; one about a version is over with the version's role."""
        rows = [self.newest(role) for role in ROLES]
        versions = {None, *(row.to_version for row in rows if row)}
        alerts: list[Alert] = []
        for alert in self.alerts:
            details = alert_details(alert)
            version = details.version if details else None
            if is_open(alert, now) and version in versions:
                alerts.append(alert)
        return alerts


@dataclass(frozen=True)
class ModelStatus:
    """What each source says of a model.

    Attributes:
        spec: The model.
        serving: Each replica's own words.
        aliases: Versions by role, as MLflow has them.
        freshness: Records of the datasets that the model reads.
        rows: See `ModelRows`.
        runs: The newest training, or that its experiment is deleted.
        reproduced: Whether versions were the same when they were last built again.

    """

    spec: ModelSpec
    serving: Reading[ServingStatuses]
    aliases: Reading[Mapping[str, str]]
    freshness: Reading[list[DatasetRecord]]
    rows: Reading[ModelRows]
    runs: Reading[RunPage | DeletedExperiment | None]
    reproduced: Reading[Mapping[str, bool]]

    def replicas(self) -> Iterator[Mapping[str, Any]]:
        """Yield what each replica of serving says of the model."""
        for status in (self.serving.value or {}).values():
            model = status["models"].get(self.spec.name)
            if model is not None:
                yield model

    def served_versions(self, role: str) -> list[str]:
        """Return the versions that replicas have in a role; two while one of them loads."""
        versions = {replica["versions"].get(role) for replica in self.replicas()}
        return sorted(version for version in versions if version)

    def refused_versions(self) -> dict[str, str]:
        """Return why replicas refuse versions, by version."""
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
        sources: What every page asks, by the fields of `ModelStatus`.
        pages: What MLflow has for a person to read.
        history: Checks over time.

    """

    def __init__(
        self,
        settings: Settings,
        spec: ModelSpec,
        serving: CachedReader[ServingStatuses],
        stores: Stores,
    ) -> None:
        """Read nothing yet; `serving` and `stores` are shared by all models."""
        name = spec.name
        pages = Pages(settings)
        training = partial(pages.training, spec.experiment)
        freshness = partial(
            service_records, settings, spec.dataset, spec.feature_service
        )
        self.spec = spec
        self.sources: dict[str, CachedReader[Any]] = {
            "serving": serving,
            "aliases": CachedReader(partial(Registry(settings).aliases, name)),
            "freshness": CachedReader(freshness),
            "rows": CachedReader(partial(_model_rows, settings, stores, spec)),
            "runs": CachedReader(training, PAGES_SECONDS),
            "reproduced": CachedReader(
                partial(Registry(settings).reproduced, name), PAGES_SECONDS
            ),
        }
        self.pages = CachedReader(
            partial(pages.pages, name, spec.experiment), PAGES_SECONDS
        )
        self.history = CachedReader(
            partial(read_history, settings, name), PAGES_SECONDS
        )

    def status(self) -> ModelStatus:
        """Return what was last read."""
        readings = {name: reader.reading for name, reader in self.sources.items()}
        return ModelStatus(self.spec, **readings)


def _model_rows(settings: Settings, stores: Stores, spec: ModelSpec) -> ModelRows:
    ledger, alerts = stores()
    model = spec.name
    alert_rows: list[Alert] = []
    for subject in (*dataset_names(spec.dataset), model):
        alert_rows += alerts.rows(subject)
    # Not by MLflow, which need not answer.
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
        alerts=alert_rows,
        results=results,
        notable=notable_decisions(settings, model, datetime.now(UTC) - YEAR),
    )

"""The whole loop at one moment, as the start page and `gyre status` show it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any

from core.settings import Settings
from core.spec import broken_specs, load_specs
from feature_engine.events.broker import consumer_lags, consumer_problem
from feature_engine.events.interface import ConsumerLag
from mlflow_server.alerts import Alerts
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.roles import PRODUCTION
from monitoring.console.cached_reader import CachedReader, Reading, read_all
from monitoring.console.model_states import states_of_model
from monitoring.console.states import (
    HEALTHS,
    LoopState,
    states_of_events,
    states_of_serving,
    with_silence,
    worst_health,
)
from monitoring.console.status import ModelReaders, ModelStatus, ServingStatuses
from monitoring.serving_status import read_statuses
from stack.airflow_api import AirflowApi

SHARED = "serving and its resources"
BROKEN_SPECS_SECONDS = 10
RUN_DAYS = timedelta(days=30)
RUNS_SECONDS = 300
"""How long counts of runs are new enough: each reading asks Airflow twice for each DAG."""


@dataclass(frozen=True)
class Card:
    """The facts about a model that are shown first; None if a fact is not known.

    Attributes:
        state: Health of its worst state: attention, unknown or ok.
        version: The version in production.
        since: Its promotion, aware UTC.
        verdict: The newest verdict, in words.
        verdict_at: The moment that the verdict is as of.
        requests_per_minute: Requests a minute in the window of the verdict.
        p99_ms: 99th percentile of the time to an answer there, in milliseconds.
        failed_share: Share of the predictions there that failed.
        open_alerts: Number of open alerts.

    """

    state: str
    version: str | None = None
    since: datetime | None = None
    verdict: str | None = None
    verdict_at: datetime | None = None
    requests_per_minute: float | None = None
    p99_ms: float | None = None
    failed_share: float | None = None
    open_alerts: int | None = None


def card_of(status: ModelStatus, states: Sequence[LoopState], now: datetime) -> Card:
    """Return the card of a model that has these states."""
    health = worst_health(states)
    rows = status.rows.value
    if rows is None:
        return Card(health)
    promotion = rows.newest(PRODUCTION)
    decision = rows.last_decision
    figures = {check.name: check.value for check in rows.results}
    return Card(
        state=health,
        version=promotion.to_version if promotion else None,
        since=promotion.time if promotion else None,
        verdict=decision.words or decision.verdict if decision else None,
        verdict_at=decision.as_of if decision else None,
        requests_per_minute=figures.get("serving/requests_per_minute"),
        p99_ms=figures.get("serving/p99_ms"),
        failed_share=figures.get("serving/failures"),
        open_alerts=len(rows.open_alerts(now)),
    )


@dataclass(frozen=True)
class LoopStatus:
    """The loop at one moment.

    Attributes:
        now: The moment, aware UTC.
        is_ready: Whether serving answers predictions.
        models: Readings by model.
        states: States by model; states of serving and events under `SHARED`.
        cards: Cards by model, the worst first.
        lags: Lags of the consumer by dataset.
        broken_specs: Files in models/ that are no specs, each with its problem.
        dag_runs: Number of runs that ended within RUN_DAYS, by DAG and state.

    """

    now: datetime
    is_ready: bool
    models: Mapping[str, ModelStatus]
    states: Mapping[str, Sequence[LoopState]]
    cards: Mapping[str, Card]
    lags: Mapping[str, ConsumerLag]
    broken_specs: Sequence[str]
    dag_runs: Reading[Mapping[str, Mapping[str, int]]]

    def promotion_times(self) -> list[datetime]:
        """Return the moments at which a version of any model got a role."""
        known_rows = [status.rows.value for status in self.models.values()]
        return [row.time for rows in known_rows if rows for row in rows.ledger]


class Loop:
    """Readers of all sources, which live as long as the process."""

    def __init__(self, settings: Settings) -> None:
        """Make the readers; of all sources only the specs are read yet."""
        self._serving: CachedReader[ServingStatuses] = CachedReader(
            partial(read_statuses, settings)
        )
        self._consumer = CachedReader(partial(consumer_problem, settings))
        self._lags = CachedReader(partial(consumer_lags, settings))
        self._broker = "kafka" if settings.events_url else "redis"
        self._broken_specs = CachedReader(broken_specs, BROKEN_SPECS_SECONDS)
        self.dag_runs = CachedReader(partial(_ended_runs, settings), RUNS_SECONDS)
        stores = cache(lambda: (Ledger(settings), Alerts(settings)))
        self.incidents = CachedReader(lambda: stores()[1].open_rows(datetime.now(UTC)))
        self._shared = (
            self._serving,
            self._consumer,
            self._lags,
            self._broken_specs,
            self.incidents,
        )
        self.models = {
            spec.name: ModelReaders(settings, spec, self._serving, stores)
            for spec in load_specs()
        }

    def read(
        self, names: Iterable[str] | None = None, *more: CachedReader[Any]
    ) -> LoopStatus:
        """Read the sources of models, all of them if `names` is None, and other sources, at once."""
        readers: list[CachedReader[Any]] = [*self._shared, *more]
        chosen = [self.models[name] for name in names or self.models]
        for model in chosen:
            readers += model.sources.values()
        read_all(readers)
        now = datetime.now(UTC)
        statuses = {model.spec.name: model.status() for model in chosen}
        incidents = self.incidents.reading.value or ()
        alerts = {(alert["model"], alert["cause"]): alert for alert in incidents}
        states = {
            name: [
                with_silence(state, alerts, now)
                for state in states_of_model(status, now)
            ]
            for name, status in statuses.items()
        }
        cards = {
            name: card_of(status, states[name], now)
            for name, status in statuses.items()
        }
        events = states_of_events(
            self._consumer.reading, self._lags.reading, now, self._broker
        )
        shared = [with_silence(state, alerts, now) for state in events]
        states[SHARED] = [*states_of_serving(self._serving.reading), *shared]
        replicas = (self._serving.reading.value or {}).values()
        return LoopStatus(
            now=now,
            is_ready=bool(replicas) and all(status["ready"] for status in replicas),
            models=statuses,
            states=states,
            cards=dict(
                sorted(cards.items(), key=lambda item: HEALTHS.index(item[1].state))
            ),
            lags=self._lags.reading.value or {},
            broken_specs=self._broken_specs.reading.value or (),
            dag_runs=self.dag_runs.reading,
        )


def _ended_runs(settings: Settings) -> dict[str, dict[str, int]]:
    if "airflow" in settings.without:
        return {}
    with AirflowApi(settings) as airflow:
        return airflow.ended_runs(datetime.now(UTC) - RUN_DAYS)

"""The whole loop at one moment, as the start page and `gyre status` show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    problems,
    state_word,
    states_of_events,
    states_of_serving,
    with_silence,
    worst_health,
)
from monitoring.console.status import ModelReaders, ModelStatus, ServingStatuses
from monitoring.serving_status import read_statuses
from stack.airflow_api import AirflowApi

SHARED = "serving and events"
BROKEN_SPECS_SECONDS = 10
RUN_DAYS = timedelta(days=30)
RUNS_SECONDS = 300
"""How long counts of runs are new enough: each reading asks Airflow twice for each DAG."""


@dataclass(frozen=True)
class Card:
    """The facts about a model that are shown first; None if a fact is not known.

    Attributes:
        state: Health of its worst state: attention, unknown or ok.
        word: Its state as one word: see `state_word`.
        problems: Number of problems.
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
    word: str = "unknown"
    problems: int = 0
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
    healths = [state.health for state, _ in problems({status.spec.name: states})]
    card = Card(
        state=worst_health(states),
        word=state_word(states),
        problems=healths.count("attention"),
    )
    rows = status.rows.value
    if rows is None:
        return card
    promotion = rows.newest(PRODUCTION)
    decision = rows.last_decision
    figures = {check.name: check.value for check in rows.results}
    return replace(
        card,
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


class Loop:
    """Readers of all sources, which live as long as the process."""

    def __init__(self, settings: Settings) -> None:
        """Make the readers; of all sources only the specs are read yet."""
        self._serving: CachedReader[ServingStatuses] = CachedReader(
            partial(read_statuses, settings)
        )
        self._consumer = CachedReader(partial(consumer_problem, settings))
        self.lags = CachedReader(partial(consumer_lags, settings))
        self._broker = "kafka" if settings.events_url else "redis"
        self._broken_specs = CachedReader(broken_specs, BROKEN_SPECS_SECONDS)
        self.dag_runs = CachedReader(partial(_ended_runs, settings), RUNS_SECONDS)
        stores = cache(lambda: (Ledger(settings), Alerts(settings)))
        self.incidents = CachedReader(lambda: stores()[1].open_rows(datetime.now(UTC)))
        self._shared = (
            self._serving,
            self._consumer,
            self.lags,
            self._broken_specs,
            self.incidents,
        )
        self.models = {
            spec.name: ModelReaders(settings, spec, self._serving, stores)
            for spec in load_specs()
        }

    def read(self, *more: CachedReader[Any]) -> LoopStatus:
        """Read the sources of all models, and other sources, at once."""
        readers: list[CachedReader[Any]] = [*self._shared, *more]
        for model in self.models.values():
            readers += model.sources.values()
        read_all(readers)
        now = datetime.now(UTC)
        statuses = {name: model.status() for name, model in self.models.items()}
        incidents = self.incidents.reading.value or ()
        alerts = {(alert["model"], alert["cause"]): alert for alert in incidents}
        silenced = partial(with_silence, alerts=alerts, now=now)
        states = {
            name: [*map(silenced, states_of_model(status, now))]
            for name, status in statuses.items()
        }
        cards = {
            name: card_of(status, states[name], now)
            for name, status in statuses.items()
        }
        events = states_of_events(
            self._consumer.reading, self.lags.reading, now, self._broker
        )
        serving = states_of_serving(self._serving.reading)
        states[SHARED] = [*serving, *map(silenced, events)]
        replicas = (self._serving.reading.value or {}).values()
        return LoopStatus(
            now=now,
            is_ready=bool(replicas) and all(status["ready"] for status in replicas),
            models=statuses,
            states=states,
            cards=dict(
                sorted(cards.items(), key=lambda item: HEALTHS.index(item[1].state))
            ),
            lags=self.lags.reading.value or {},
            broken_specs=self._broken_specs.reading.value or (),
            dag_runs=self.dag_runs.reading,
        )


def _ended_runs(settings: Settings) -> dict[str, dict[str, int]]:
    if "airflow" in settings.without:
        return {}
    with AirflowApi(settings) as airflow:
        return airflow.ended_runs(datetime.now(UTC) - RUN_DAYS)

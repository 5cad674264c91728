"""Alerts of events that wait: the console looks once a minute, whoever reads its pages."""

import logging
import threading
from contextlib import closing
from datetime import UTC, datetime

from core.settings import Settings
from feature_repo.broker import consumer_lags
from mlflow_server.alerts import alert
from mlflow_server.records import Records
from monitoring.console.checks import late_events

WATCH_SECONDS = 60.0
CAUSE = "events wait"
logger = logging.getLogger(__name__)


def alert_of_late_events(settings: Settings, now: datetime) -> None:
    """Alert of each dataset whose events wait for too long, once per incident.

    Raises:
        BrokerUnavailableError: Redis does not answer.
        RegistryError: The database of alerts does not answer.

    """
    for dataset, lag in consumer_lags(settings).items():
        problem = late_events(dataset, lag, now)
        if problem:
            with closing(Records(settings)) as records:
                alert(settings, records, dataset, CAUSE, problem, now)


def watch(settings: Settings, stopped: threading.Event) -> None:
    """Look and alert until `stopped` is set."""
    while not stopped.wait(WATCH_SECONDS):
        try:
            alert_of_late_events(settings, datetime.now(UTC))
        except Exception as exc:  # noqa: BLE001  (Redis, or the database: it is tried again)
            logger.warning("nobody can be alerted of events that wait: %s", exc)

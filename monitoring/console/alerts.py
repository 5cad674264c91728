"""Alerts that only the console raises: late events and refused versions."""

import logging
import threading
from datetime import UTC, datetime

import httpx

from core.settings import Settings
from feature_engine.events.broker import consumer_lags
from mlflow_server.alerts import VERSION_REFUSED, Alerts, DriftAlert
from mlflow_server.roles import PRODUCTION, version_text
from monitoring.console.states import EVENTS_WAIT, late_events
from monitoring.console.status import refusal_cause
from monitoring.serving_status import read_status, replicas_of

WATCH_SECONDS = 10.0
"""Time between two rounds."""
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
            with Alerts(settings) as alerts:
                alerts.alert(dataset, EVENTS_WAIT, problem, now)


def alert_of_refusals(settings: Settings, now: datetime) -> None:
    """Alert of each version that a replica of serving refuses, once per incident.

    A replica that does not answer hides no other.

    Raises:
        RegistryError: The database of alerts does not answer.

    """
    for replica, address in replicas_of(settings).items():
        try:
            status = read_status(settings, address)
        except (httpx.HTTPError, ValueError) as exc:
            logger.info(
                "%s does not name the versions that it refuses: %s", replica, exc
            )
            continue
        for model, fields in status["models"].items():
            production = fields["versions"].get(PRODUCTION)
            for version, reason in fields["refused"].items():
                cause = refusal_cause(version)
                content = DriftAlert(
                    feature=PRODUCTION,
                    drift_type=VERSION_REFUSED,
                    severity="significant",
                    psi_score=None,
                    detected_at=now,
                    message=f"{version_text(production)} answers; {cause}: {reason}",
                    version=version,
                )
                with Alerts(settings) as alerts:
                    alerts.alert(model, cause, content, now)


def watch(settings: Settings, stopped: threading.Event) -> None:
    """Alert of refused versions and late events, round by round, until `stopped` is set."""
    while not stopped.wait(WATCH_SECONDS):
        now = datetime.now(UTC)
        try:
            alert_of_refusals(settings, now)
            alert_of_late_events(settings, now)
        except Exception as exc:  # noqa: BLE001  (Redis, or the database: it is tried again)
            logger.warning("nobody can be alerted: %s", exc)

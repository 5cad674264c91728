"""Alerts: one for each incident, which counts how often its cause was seen.

An incident is over once its cause was not seen for 3 hours; no alert says so. `GYRE_ALERT_URLS`
holds Apprise addresses (Slack, PagerDuty, mail, a webhook), separated by blanks. Without one, alerts
are lines of GYRE_HOME/logs/alerts.log. `gyre maintain` deletes alerts that were not seen for 400
days.

A person may acknowledge an incident, or mute its cause for a time: `Alerts.silence`.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sql
from pydantic import TypeAdapter

from core.errors import MonitoringError
from core.settings import Settings
from mlflow_server.chat_text import text_for
from mlflow_server.database import Store, lock_tables
from mlflow_server.tables import ALERTS, SILENCES

log = logging.getLogger(__name__)
QUIET = timedelta(hours=3)
"""Time without its cause after which an incident is over: most causes are checked every hour."""
VERSION_REFUSED = "refused"
"""`drift_type` of an alert that serving refuses a version."""
FAILED = " failed: "
"""Text between task and error in the cause of an alert about a failed task."""
ROLLOUT_STOPPED = "rollout of "
"""Beginning of the cause of an alert that a rollout was stopped."""
WAITS = " waits for approval"
"""End of the cause of an alert that a version waits for a person."""
COMPARED_LENGTH = 100
"""Characters by which the error of a failed task is compared with earlier errors."""
Severity = Literal["moderate", "significant", "critical"]
DEFAULT_SEVERITY: Severity = "significant"
"""Severity of an alert without details, such as of a failed task."""
NOTIFY_TYPES = {"moderate": "info", "significant": "warning", "critical": "failure"}
"""Apprise's words for severities: PagerDuty's severity and Slack's colour follow from them."""


@dataclass(frozen=True)
class DriftAlert:
    """Finding of a monitoring run that goes out as an alert.

    Attributes:
        feature: The column that drifts most, `score`, or another subject such as `entities`.
        drift_type: Kind of the finding, such as data_drift, concept_drift or harm.
        severity: How bad it is.
        psi_score: Population stability index; None if another measure was judged.
        detected_at: Time of the monitoring run, aware UTC.
        message: The finding in words.
        version: Version of the model that the finding is about. The incident is over once that
            version is in no role. None: roles do not end the incident.

    """

    feature: str
    drift_type: str
    severity: Severity
    psi_score: float | None
    detected_at: datetime
    message: str
    version: str | None = None


DRIFT_ALERTS = TypeAdapter(DriftAlert)


class Alerts(Store):
    """Alerts about models and datasets."""

    subject = "alerts"

    def alert(
        self, subject: str, cause: str, content: str | DriftAlert, at: datetime
    ) -> bool:
        """Deliver an alert unless its incident has one; return whether one went out now."""
        self.note(subject, cause, content, at)
        return self.deliver(subject, at) > 0

    def alert_failure(self, subject: str, task: str, error: str, at: datetime) -> None:
        """Alert about a failed task, once for each error; numbers in the error may vary."""
        start = re.sub(r"[0-9]+", "#", error)[:COMPARED_LENGTH]
        self.alert(subject, f"{task}{FAILED}{start}", f"{task}{FAILED}{error}", at)

    def note(
        self,
        subject: str,
        cause: str,
        content: str | DriftAlert,
        at: datetime,
        *,
        until: datetime | None = None,
    ) -> None:
        """Count the open incident of `cause`, or begin one; the next `deliver` sends it.

        until: Time up to which the cause stays, if nobody checks it again.
        """
        last = until or at
        sighting = {"message": content, "details": None, "last": last.isoformat()}
        if isinstance(content, DriftAlert):
            sighting["message"] = content.message
            sighting["details"] = DRIFT_ALERTS.dump_json(content).decode()
        incident = {
            "model": subject,
            "cause": cause,
            "count": 1,
            "first": at.isoformat(),
            "delivered": False,
        }
        same = sql.update(ALERTS).filter_by(model=subject, cause=cause)
        ongoing = same.where(ALERTS.c.last >= (at - QUIET).isoformat())
        again = ongoing.values(count=ALERTS.c.count + 1, **sighting)
        with self._begin() as connection:
            lock_tables(connection, "gyre.alerts")  # of two processes one begins it
            if not connection.execute(again).rowcount:
                connection.execute(sql.insert(ALERTS).values(incident | sighting))

    def deliver(self, subject: str, at: datetime) -> int:
        """Send alerts that no address has taken yet; return the number that went out.

        A muted alert waits. One address that takes an alert is enough: a dead address must not make
        the others get it again.
        """
        count = 0
        if not self.undelivered(subject, at):
            return count
        send = _send if self._settings.alert_urls else _write
        with self._lock("alerts"):
            for row in self.undelivered(subject, at):
                if send(self._settings, row, at):
                    same = sql.update(ALERTS).filter_by(sequence=row["sequence"])
                    count += self._execute(same.values(delivered=True))
                else:
                    text = "%s: no address took the alert, it is sent again later: %s"
                    log.warning(text, subject, row["cause"])
        return count

    def undelivered(self, subject: str, at: datetime) -> list[dict[str, Any]]:
        """Return alerts about a model or a dataset that are still to be sent."""
        return [row for row in self.rows(subject) if is_undelivered(row, at)]

    def rows(self, subject: str | None = None) -> list[dict[str, Any]]:
        """Return alerts, a row for each incident, the newest last.

        A row also has the columns of the silence of its incident; they are None if there is none.

        subject: A model or a dataset; None: all.
        """
        same_cause = sql.and_(
            SILENCES.c.model == ALERTS.c.model,
            SILENCES.c.cause == ALERTS.c.cause,
            SILENCES.c.until.is_not(None) | (SILENCES.c.silenced_at >= ALERTS.c.first),
        )
        silence = [SILENCES.c[name] for name in ("who", "why", "silenced_at", "until")]
        query = sql.select(ALERTS, *silence).outerjoin_from(
            ALERTS, SILENCES, same_cause
        )
        if subject is not None:
            query = query.where(ALERTS.c.model == subject)
        with self._begin() as connection:
            rows = connection.execute(query.order_by(ALERTS.c.first, ALERTS.c.sequence))
            return [dict(row) for row in rows.mappings()]

    def open_rows(
        self, now: datetime, subject: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the alerts of incidents that go on: see `rows`."""
        return [row for row in self.rows(subject) if is_open(row, now)]

    def silence(
        self,
        number: int,
        at: datetime,
        *,
        who: str,
        why: str,
        until: datetime | None = None,
    ) -> dict[str, Any]:
        """Acknowledge an open incident, or mute its cause; the newest word about a cause counts.

        An incident that goes on after its mute is delivered, also if it was delivered before.

        Args:
            number: `sequence` of the incident.
            at: Now, aware UTC.
            who: The person.
            why: The reason; may be empty.
            until: End of the mute; None: the incident is acknowledged.

        Returns:
            The row of the incident.

        Raises:
            MonitoringError: No open incident has this number.

        """
        incidents = {row["sequence"]: row for row in self.open_rows(at)}
        if number not in incidents:
            raise MonitoringError(
                f"no incident {number} is open: gyre alerts lists the open ones"
            )
        cause = {name: incidents[number][name] for name in ("model", "cause")}
        end = until.isoformat() if until else None
        silence = {"who": who, "why": why, "silenced_at": at.isoformat(), "until": end}
        same = sql.update(ALERTS).filter_by(sequence=number)
        # Not while a delivery goes on, which marks what it has sent.
        with self._lock("alerts"), self._begin() as connection:
            lock_tables(connection, "gyre.alerts")
            connection.execute(sql.delete(SILENCES).filter_by(**cause))
            connection.execute(sql.insert(SILENCES).values(cause | silence))
            connection.execute(same.values(delivered=until is None))
        return incidents[number] | silence

    def end(self, subject: str, cause: str) -> None:
        """Delete the alerts with this cause, which is gone."""
        self._execute(sql.delete(ALERTS).filter_by(model=subject, cause=cause))

    def end_failures(self, dag: str, task: str = "") -> None:
        """Delete the alerts about failed tasks of a DAG, or about one task; the work is done now."""
        start = f"{dag}.{task}{FAILED}" if task else f"{dag}."
        is_over = ALERTS.c.cause.startswith(start, autoescape=True)
        self._execute(sql.delete(ALERTS).where(is_over))

    def forget(self, before: datetime) -> int:
        """Delete alerts last seen before a moment, and older silences; return the alerts' number."""
        self._execute(
            sql.delete(SILENCES).where(SILENCES.c.silenced_at < before.isoformat())
        )
        return self._execute(
            sql.delete(ALERTS).where(ALERTS.c.last < before.isoformat())
        )

    def _execute(self, statement: sql.Update | sql.Delete) -> int:
        """Change rows; return their number."""
        with self._begin() as connection:
            return connection.execute(statement).rowcount


def cause_of_question(version: str) -> str:
    """Return the cause of the alert that a version waits for approval."""
    return f"version {version}{WAITS}"


def is_open(alert: Mapping[str, Any], now: datetime) -> bool:
    """Whether an incident goes on."""
    return datetime.fromisoformat(alert["last"]) >= now - QUIET


def is_muted(alert: Mapping[str, Any], now: datetime) -> bool:
    """Whether the cause of an alert is muted, or was not seen since its mute ended."""
    return bool(alert["until"]) and min(now.isoformat(), alert["last"]) < alert["until"]


def is_undelivered(alert: Mapping[str, Any], now: datetime) -> bool:
    """Whether an alert is still to be sent."""
    return not alert["delivered"] and not is_muted(alert, now)


def alert_details(alert: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `DriftAlert` of an alert about a finding; empty of another alert."""
    details: dict[str, Any] = json.loads(alert["details"] or "{}")
    return details


def silence_text(alert: Mapping[str, Any], now: datetime) -> str:
    """Return who acknowledged or muted an incident, when and why; empty: nobody."""
    is_over = alert["until"] and not is_muted(alert, now)
    if not alert["who"] or is_over:
        return ""
    moment = datetime.fromisoformat(alert["until"] or alert["silenced_at"])
    word = "muted until" if alert["until"] else "acknowledged at"
    reason = f": {alert['why']}" if alert["why"] else ""
    return f"{word} {moment:%Y-%m-%d %H:%M} UTC by {alert['who']}{reason}"


def _write(settings: Settings, row: Mapping[str, Any], at: datetime) -> bool:
    """Append an alert to `logs/alerts.log`; return True, as `_send` may."""
    line = alert_details(row) | {"time": at.isoformat()}
    line |= {name: row[name] for name in ("model", "cause", "message")}
    path = settings.home / "logs" / "alerts.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return True


def _send(settings: Settings, row: Mapping[str, Any], at: datetime) -> bool:
    """Send an alert to every address; return whether one has taken it."""
    import apprise  # noqa: PLC0415  (0.7 s, and alerts are rare)

    details = alert_details(row)
    details.pop("message", None)
    severity: Severity = details.get("severity", DEFAULT_SEVERITY)
    lines = [f"{row['message']} ({row['cause']}, {at:%Y-%m-%d %H:%M} UTC)"]
    lines += [f"{name}: {value}" for name, value in details.items()]
    title = f"Gyre: {row['model']}"
    body = "\n".join(lines)
    deliveries = []
    for service in apprise.Apprise(settings.alert_urls.split()):
        # PagerDuty refuses a text that is too long; by default Apprise does not cut it.
        if service.overflow_mode == apprise.OverflowMode.UPSTREAM:
            service.overflow_mode = apprise.OverflowMode.TRUNCATE
        delivery = apprise.Apprise(service).notify(
            title=text_for(service, title),
            body=text_for(service, body),
            # A service that has markup shows every sign of the text as it is.
            body_format=apprise.NotifyFormat.TEXT,
            notify_type=NOTIFY_TYPES[severity],
        )
        deliveries.append(delivery)
    return any(deliveries)

"""Alerts: one per incident, counted when it is seen again, delivered through Apprise.

An incident is over once its cause was not seen for 3 hours; nobody is told of that.
`GYRE_ALERT_URLS` holds Apprise addresses (Slack, PagerDuty, mail, a webhook: one URL each),
separated by blanks. Without one, alerts are lines of GYRE_HOME/logs/alerts.log.
"""

import json
import logging
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import TypeAdapter

from core.settings import Settings
from mlflow_server.records import Records

log = logging.getLogger(__name__)
FAILED = " failed: "
"""Separates task and error in the cause of an alert about a failed task."""
LONGEST = 100
"""Characters of an error that are compared with those of others."""
Severity = Literal["moderate", "significant", "critical"]


@dataclass(frozen=True)
class DriftAlert:
    """What a monitor alerts of; `message` says all of it in words.

    feature: the column that says most, `score`, or what else is watched, such as `entities`.
    drift_type: such as data_drift, concept_drift, harm. psi_score: None where it is judged
    otherwise. detected_at: aware UTC, the monitoring run that saw it.
    """

    feature: str
    drift_type: str
    severity: Severity
    psi_score: float | None
    detected_at: datetime
    message: str


DRIFT_ALERTS = TypeAdapter(DriftAlert)


def alert(
    settings: Settings,
    records: Records,
    model: str,
    cause: str,
    content: str | DriftAlert,
    at: datetime,
) -> bool:
    """Deliver an alert unless that of this incident was; say whether one went out now."""
    note(records, model, cause, content, at)
    return deliver(settings, records, model, at) > 0


def note(
    records: Records, model: str, cause: str, content: str | DriftAlert, at: datetime
) -> None:
    """Count the incident and tell nobody: the next `deliver` does."""
    if isinstance(content, str):
        records.count_alert(model, cause, content, at)
    else:
        details = DRIFT_ALERTS.dump_json(content).decode()
        records.count_alert(model, cause, content.message, at, details)


def deliver(settings: Settings, records: Records, model: str, at: datetime) -> int:
    """Send what no address has taken yet, of `model`; return how many alerts went out.

    One that takes it is enough: the others must not hear it again for the sake of a dead one.
    """
    if not records.undelivered(model):
        return 0
    send, count = _send if settings.alert_urls else _write, 0
    with records.exclusive():
        for row in records.undelivered(model):
            if send(settings, row, at):
                records.alert_delivered(row["sequence"])
                count += 1
            else:
                log.warning(
                    "%s: alert not delivered, to be tried again: %s",
                    model,
                    row["cause"],
                )
    return count


def alert_failure(
    settings: Settings,
    records: Records,
    subject: str,
    task: str,
    error: str,
    at: datetime,
) -> None:
    """Alert of a failed task, once for each error; numbers in it may vary."""
    cause = f"{task}{FAILED}{re.sub(r'[0-9]+', '#', error)[:LONGEST]}"
    alert(settings, records, subject, cause, f"{task}{FAILED}{error}", at)


def _write(settings: Settings, row: dict[str, Any], at: datetime) -> bool:
    line = json.loads(row["details"] or "{}") | {"time": at.isoformat()}
    line |= {name: row[name] for name in ("model", "cause", "message")}
    path = settings.home / "logs" / "alerts.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return True


def _send(settings: Settings, row: dict[str, Any], at: datetime) -> bool:
    import apprise  # noqa: PLC0415  (0.7 s, and serving seldom has anything to tell)

    details = json.loads(row["details"] or "{}")
    lines = [f"{row['message']} ({row['cause']}, {at:%Y-%m-%d %H:%M} UTC)"]
    lines += [
        f"{name}: {value}" for name, value in details.items() if name != "message"
    ]
    title, body = f"Gyre: {row['model']}", "\n".join(lines)
    addresses = [apprise.Apprise(url) for url in settings.alert_urls.split()]
    taken = [bool(address.notify(title=title, body=body)) for address in addresses]
    return any(taken)  # only now: each address is to hear it

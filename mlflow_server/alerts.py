"""Alerts: said once per cause, counted when seen again, delivered through Apprise.

`GYRE_ALERT_URLS` holds Apprise addresses (Slack, PagerDuty, mail, a webhook: one URL each),
separated by blanks. Without one, alerts are lines of GYRE_HOME/logs/alerts.log.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  (pydantic reads the annotations)
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_server.records import Records
    from stack.settings import Settings

log = logging.getLogger(__name__)
FAILED = " failed: "
"""Separates task and error in the cause of an alert about a failed task."""
LONGEST = 100
"""Characters of an error that are compared with those of others."""
Severity = Literal["moderate", "significant", "critical"]


@dataclass(frozen=True)
class DriftAlert:
    """What a monitor alerts of. psi_score: of `feature`, None where it is judged otherwise.

    feature: the column that says most, `score`, or what else is watched, such as `entities`.
    drift_type: such as data_drift, prediction_drift, concept_drift, performance, harm.
    detected_at: aware UTC, the look that saw it. message: all of it, in words.
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
    said: str | DriftAlert,
    at: datetime,
) -> bool:
    """Deliver an alert unless this cause was delivered before; say whether it went out now.

    It is delivered once one address has taken it: of several, one that is dead must not make the
    others hear it every time. A failed delivery is tried again when the cause is seen again, and by
    `retry`. Safe in several processes: one of those that see a cause at once delivers it.
    """
    return note(records, model, cause, said, at) and deliver(settings, records, model, cause, at)


def note(records: Records, model: str, cause: str, said: str | DriftAlert, at: datetime) -> bool:
    """Count an alert and tell nobody; say whether the caller must `deliver` it.

    What is noted and not delivered, because its process died, is delivered by `retry`.
    """
    if isinstance(said, DriftAlert):
        details = DRIFT_ALERTS.dump_json(said).decode()
        return records.count_alert(model, cause, said.message, at, details)
    return records.count_alert(model, cause, said, at)


def over(
    settings: Settings, records: Records, row: dict[str, Any], why: str | None, at: datetime
) -> bool:
    """Tell once that the cause of `row` (of `alerts`) is over, and why; None ends it unsaid."""
    times = f"seen {row['count']} times since {row['first'][:16]}"
    message = why and f"over: {why}; it was {row['message']} ({times})"
    if not records.end_alert(row["model"], row["cause"], message, at):
        return False
    return deliver(settings, records, row["model"], row["cause"], at)


def failing(settings: Settings, task: str) -> Path:
    """Return the file that exists while `task` fails; a success without it opens no database."""
    return settings.home / "run" / f"{task}.failing"


def alert_failure(
    settings: Settings, records: Records, subject: str, task: str, error: str, at: datetime
) -> None:
    """Alert of a failed task, once for each error until `end_failures`.

    Errors that differ only in numbers, such as counts and times, are the same one.
    """
    failing(settings, task).parent.mkdir(parents=True, exist_ok=True)
    failing(settings, task).touch()
    cause = f"{task}{FAILED}{re.sub(r'[0-9]+', '#', error)[:LONGEST]}"
    alert(settings, records, subject, cause, f"{task}{FAILED}{error}", at)


def end_failures(
    settings: Settings, records: Records, subject: str, task: str, at: datetime
) -> None:
    """Tell once, of each error that `task` failed with, that it is over."""
    for row in records.alerts(subject):
        if row["over"] is None and row["cause"].startswith(f"{task}{FAILED}"):
            over(settings, records, row, f"{task} succeeded", at)
    failing(settings, task).unlink(missing_ok=True)


def retry(settings: Settings, records: Records, model: str, at: datetime) -> int:
    """Try again whatever of `model` could not be delivered; return how many went out now."""
    late = [row["cause"] for row in records.undelivered(model) if row["tried"] != at.isoformat()]
    taken = (cause for cause in late if records.take_alert(model, cause, at))
    return sum(deliver(settings, records, model, cause, at) for cause in taken)


def deliver(settings: Settings, records: Records, model: str, cause: str, at: datetime) -> bool:
    """Send what is noted of `cause`; say whether an address has taken it."""
    row = next(each for each in records.alerts(model) if each["cause"] == cause)
    delivered = _send(settings, row, at)
    if delivered:
        records.alert_delivered(model, cause)
    else:
        log.warning("%s: an alert was not delivered, and will be tried again: %s", model, cause)
    return delivered


def _send(settings: Settings, row: dict[str, Any], at: datetime) -> bool:
    model, cause, message = row["model"], row["cause"], row["message"]
    details = json.loads(row["details"] or "{}")
    if not settings.alert_urls:
        told = {"time": at.isoformat(), "model": model, "cause": cause, "message": message}
        ended = {"over": row["over"]} if row["over"] else {}
        line = details | told | ended
        path = settings.home / "logs" / "alerts.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return True
    import apprise  # noqa: PLC0415  (0.7 s, and serving seldom has anything to tell)

    title, lines = f"Gyre: {model}", [f"{message} ({cause}, {at:%Y-%m-%d %H:%M} UTC)"]
    lines += [f"{name}: {value}" for name, value in details.items() if name != "message"]
    addresses = [apprise.Apprise(url) for url in settings.alert_urls.split()]
    taken = [bool(each.notify(title=title, body="\n".join(lines))) for each in addresses]
    return any(taken)

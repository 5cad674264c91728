"""Alerts: said once per cause, counted when seen again, delivered through Apprise.

`GYRE_ALERT_URLS` holds Apprise addresses (Slack, PagerDuty, mail, a webhook: one URL each),
separated by blanks. Without one, alerts are lines of GYRE_HOME/logs/alerts.log.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import apprise

if TYPE_CHECKING:
    from datetime import datetime

    from mlflow_server.records import Records
    from stack.settings import Settings


def alert(
    settings: Settings, records: Records, model: str, cause: str, message: str, at: datetime
) -> bool:
    """Deliver an alert unless this cause was delivered before; say whether it went out now.

    A failed delivery is tried again the next time the cause is seen.
    """
    if not records.count_alert(model, cause, message, at):
        return False
    delivered = _send(settings, model, cause, message, at)
    if delivered:
        records.alert_delivered(model, cause)
    return delivered


def _send(settings: Settings, model: str, cause: str, message: str, at: datetime) -> bool:
    if not settings.alert_urls:
        line = {"time": at.isoformat(), "model": model, "cause": cause, "message": message}
        path = settings.home / "logs" / "alerts.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return True
    sender = apprise.Apprise()
    for url in settings.alert_urls.split():
        sender.add(url)
    return bool(
        sender.notify(title=f"Gyre: {model}", body=f"{message} ({cause}, {at:%Y-%m-%d %H:%M} UTC)")
    )

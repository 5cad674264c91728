"""Alerts: said once per cause, counted when seen again, delivered through Apprise.

`GYRE_ALERT_URLS` holds Apprise addresses (Slack, PagerDuty, mail, a webhook: one URL each),
separated by blanks. Without one, alerts are lines of GYRE_HOME/logs/alerts.log.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from mlflow_server.records import Records
    from stack.settings import Settings

log = logging.getLogger(__name__)


def alert(
    settings: Settings, records: Records, model: str, cause: str, message: str, at: datetime
) -> bool:
    """Deliver an alert unless this cause was delivered before; say whether it went out now.

    It is delivered once one address has taken it: of several, one that is dead must not make the
    others hear it every time. A failed delivery is tried again the next time the cause is seen.
    Safe in several processes: one of those that see a cause at once delivers it.
    """
    if not records.count_alert(model, cause, message, at):
        return False
    delivered = _send(settings, model, cause, message, at)
    if delivered:
        records.alert_delivered(model, cause)
    else:
        log.warning("%s: an alert was not delivered, and will be when seen again: %s", model, cause)
    return delivered


def _send(settings: Settings, model: str, cause: str, message: str, at: datetime) -> bool:
    if not settings.alert_urls:
        line = {"time": at.isoformat(), "model": model, "cause": cause, "message": message}
        path = settings.home / "logs" / "alerts.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return True
    import apprise  # noqa: PLC0415  (0.7 s, and serving seldom has anything to tell)

    title, body = f"Gyre: {model}", f"{message} ({cause}, {at:%Y-%m-%d %H:%M} UTC)"
    addresses = [apprise.Apprise(url) for url in settings.alert_urls.split()]
    taken = [bool(address.notify(title=title, body=body)) for address in addresses]
    return any(taken)

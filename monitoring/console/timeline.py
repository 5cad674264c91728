"""What happened to a model: promotions, verdicts, alerts and trainings in one line of time."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from mlflow_server.api.pages import RunPage
from mlflow_server.promotion.ledger import LedgerRow
from mlflow_server.roles import PRODUCTION, version_text
from monitoring.console.states import Health
from monitoring.console.status import Alert, ModelStatus
from monitoring.decisions.store import DecisionRow

DECISION_TITLES = {
    "retrain": "A retraining was decided",
    "rollback": "A rollback was decided",
    "alert": "An alert was decided",
}
"""Title by action; a decision without an action is listed where its window is bad."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event.

    Attributes:
        at: Its moment, aware UTC.
        model: Name of the model.
        title: What happened.
        text: Cause or outcome.
        health: `ok` of what is good, `attention` of what is not, `unknown` of what only begins.
        links: Addresses by their text, in the form of `CheckResult.link`.

    """

    at: datetime
    model: str
    title: str
    text: str
    health: Health
    links: Sequence[tuple[str, str]]


def events_of(
    statuses: Iterable[ModelStatus], since: datetime, reports: Collection[str] = ()
) -> list[Event]:
    """Return the events of models since a moment, the newest first.

    Args:
        statuses: Readings of the sources, of each model.
        since: Aware UTC.
        reports: Ends of the windows whose report is stored, such as 2026-11-01T10:00:00.

    """
    events: list[Event] = []
    for status in statuses:
        model = status.spec.name
        rows = status.rows.value
        if rows:
            events += map(_event_of_role, rows.ledger)
            events += [_event_of_decision(row, reports) for row in rows.notable]
            events += [_event_of_alert(model, alert) for alert in rows.alerts]
        if isinstance(status.runs.value, RunPage):
            events += _events_of_training(model, status.runs.value)
    recent_events = [event for event in events if event.at > since]
    return sorted(recent_events, key=lambda event: event.at, reverse=True)


def _event_of_role(row: LedgerRow) -> Event:
    links = [("ledger", f"/status/{row.model}?tab=ledger#row-{row.sequence}")]
    if row.who.startswith("airflow"):
        links.append(("Airflow runs", f"airflow/dags/train_{row.model}/runs"))
    title = _title_of_role(row)
    if not row.applied_at:
        title = f"not applied: {title}"
    is_good = row.applied_at and "rollback" not in row.action
    return Event(
        at=row.time,
        model=row.model,
        title=title[0].upper() + title[1:],
        text=f"by {row.who}: {row.why}",
        health="ok" if is_good else "attention",
        links=links,
    )


def _title_of_role(row: LedgerRow) -> str:
    version = version_text(row.to_version or row.from_version)
    if row.role != PRODUCTION:
        return f"{row.action}: {version}, {row.role} {row.percent} %"
    if row.action == "promote":
        return f"{version} promoted"
    if "rollback" in row.action:
        return f"{row.action} to {version}"
    return f"{version} {row.action}"


def _event_of_decision(row: DecisionRow, reports: Collection[str]) -> Event:
    window = row.as_of.strftime("%Y-%m-%dT%H:%M:%S")
    links = [("verdicts", f"/status/{row.model}?tab=ledger#verdicts")]
    if window in reports:
        links.append(("report", f"/report/{row.model}/{window}"))
    return Event(
        at=row.as_of,
        model=row.model,
        title=DECISION_TITLES.get(row.action, "The window is bad"),
        text=f"{version_text(row.version)}: {row.words or row.reason}",
        health="attention",
        links=links,
    )


def _event_of_alert(model: str, alert: Alert) -> Event:
    first = datetime.fromisoformat(alert["first"])
    return Event(
        at=datetime.fromisoformat(alert["last"]),
        model=model,
        title=f"Alert: {alert['cause']}",
        text=f"since {first:%Y-%m-%d %H:%M} UTC, seen: {alert['count']}",
        health="attention",
        links=[("alerts", f"/status/{model}?tab=ledger#alerts")],
    )


def _events_of_training(model: str, run: RunPage) -> Iterator[Event]:
    links = (
        ("MLflow run", run.address),
        ("Airflow runs", f"airflow/dags/train_{model}/runs"),
    )
    reason = run.tags.get("reason") or "no reason given"
    yield Event(
        at=run.started,
        model=model,
        title="Training started",
        text=reason,
        health="unknown",
        links=links,
    )
    if run.ended:
        yield Event(
            at=run.ended,
            model=model,
            title=f"Training {run.status.lower()}",
            text=run.outcome,
            health="ok" if run.status == "FINISHED" else "attention",
            links=links,
        )

"""Whether the loop is healthy, and why: pure functions of what is known."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from feature_repo.broker import MAX_LAG_SECONDS, ConsumerLag
from feature_repo.dataset_record import DatasetRecord
from mlflow_server.alerts import FAILED
from mlflow_server.pages import RunPage
from mlflow_server.records import DecisionRow, ModelRows
from monitoring.console.cached_reader import Reading
from monitoring.console.status import ModelStatus
from monitoring.serving_status import ServingStatus

HOUR = timedelta(hours=1)
MONITORING_LATE = 3 * HOUR
"""Monitoring runs are hourly: two missed."""
LOG_LAG_SECONDS = 30.0
REFUSED_FOR = 24 * HOUR
"""A training that its gates refused is worth a look for so long: a weekly one may well be."""


@dataclass(frozen=True)
class Check:
    """One line of a page.

    Attributes:
        name: What is checked.
        ok: None where it is not known.
        remark: Why, in words.
        at: When it was so, UTC.
        since: Since when it has been so, UTC, where that is known.

    """

    name: str
    ok: bool | None
    remark: str
    at: datetime | None = None
    since: datetime | None = None


def of_server(reading: Reading[ServingStatus]) -> Iterator[Check]:
    """Judge serving, its resources, and its logs."""
    status = reading.value
    if status is None:
        yield _unknown("serving", reading)
        return
    is_ready = status.ready["ready"]
    yield Check(
        name="serving",
        ok=is_ready,
        remark="ready" if is_ready else "not ready",
        at=reading.at,
    )
    for name, resource in status.ready["resources"].items():
        yield Check(
            name=name,
            ok=resource["ok"],
            remark=resource["detail"],
            at=reading.at,
        )
    for log, seconds in status.sums("gyre_log_lag_seconds", "log").items():
        yield Check(
            name=f"{log} on disk",
            ok=seconds <= LOG_LAG_SECONDS,
            remark=f"rows waited {seconds:.1f} s at most",
            at=reading.at,
        )


def of_events(
    consumer: Reading[str | None],
    lags: Reading[Mapping[str, ConsumerLag]],
    now: datetime,
) -> Iterator[Check]:
    """Judge whether a consumer reads the events, and whether it processes those of each dataset.

    Args:
        consumer: Why none reads; None if one does.
        lags: By dataset.
        now: Aware UTC.

    """
    if consumer.at is None:
        yield _unknown("consumer", consumer)
    else:
        yield Check(
            name="consumer",
            ok=not consumer.value,
            remark=consumer.value or "reads the events",
            at=consumer.at,
        )
    if lags.value is None:
        yield _unknown("events", lags)
        return
    for dataset, lag in lags.value.items():
        problem = late_events(dataset, lag, now)
        yield Check(
            name="events",
            ok=not problem,
            remark=problem or f"{dataset}: requests that wait: {lag.entries}",
            at=lags.at,
            since=lag.oldest if problem else None,
        )


def late_events(dataset: str, lag: ConsumerLag, now: datetime) -> str | None:
    """Say that events wait for too long; None if they do not."""
    seconds = lag.seconds(now)
    if seconds <= MAX_LAG_SECONDS:
        return None
    return (
        f"{dataset}: a request has waited for the consumer for {seconds:.0f} s, "
        f"at most {MAX_LAG_SECONDS:.0f} s are expected; requests that wait: {lag.entries}"
    )


def of_model(status: ModelStatus, now: datetime) -> Iterator[Check]:
    """Judge one model; a source that does not answer is a check of its own."""
    sources: dict[str, Reading[Any]] = {
        "versions in serving": status.serving,
        "aliases in MLflow": status.aliases,
        "ledger, verdicts, alerts": status.rows,
        "last training": status.runs,
        "features": status.freshness,
    }
    for name, reading in sources.items():
        if reading.at is None:
            yield _unknown(name, reading)
    yield from _roles(status)
    if status.rows.value:
        yield from _monitoring(status.rows.value, status.rows.at, now)
        yield from _alerts(status.rows.value, status.rows.at, now)
    if status.runs.at:
        yield _training(status.runs.value, status.runs.at, now)
    if status.freshness.value:
        yield _features(status.freshness.value, status.freshness.at, now)


def _unknown(name: str, reading: Reading[Any]) -> Check:
    return Check(name, None, f"unknown: {reading.why}")


def _features(
    records: list[DatasetRecord], at: datetime | None, now: datetime
) -> Check:
    problems: list[str] = []
    remarks: list[str] = []
    for record in records:
        problems += [text for _, text in record.problems(now)]
        end = f"complete up to {_time(record.watermark)}, newest event {_time(record.newest)}"
        remarks.append(
            f"{record.dataset} {end}" if record.watermark else _not_ingested(record)
        )
    is_complete = all(record.watermark for record in records) or None
    return Check(
        "features", not problems and is_complete, "; ".join(problems or remarks), at
    )


def _not_ingested(record: DatasetRecord) -> str:
    return (
        f"{record.dataset}: nothing is ingested yet; run: gyre ingest {record.dataset}"
    )


def _roles(status: ModelStatus) -> Iterator[Check]:
    """Compare who says which version is in a role: production, and others that are taken."""
    serving = status.serving.value
    aliases = status.aliases.value
    rows = status.rows.value
    for role in ("production", "challenger", "shadow"):
        ledger_row = rows.newest(role) if rows else None
        versions: dict[str, str | None] = {}
        if serving:
            versions["workers"] = (
                " and ".join(serving.versions(status.spec.name, role)) or None
            )
        if aliases is not None:
            versions["MLflow's alias"] = aliases.get(role)
        if rows:
            versions["ledger"] = ledger_row.to_version if ledger_row else None
        distinct_versions = {*versions.values()}
        version = next(iter(distinct_versions), None)
        if len(distinct_versions) > 1:
            remarks = [
                f"{source}: {_version(name)}" for source, name in versions.items()
            ]
            yield Check(
                name=role,
                ok=False,
                remark="; ".join(remarks + _refusals(status)),
                since=ledger_row.time if ledger_row else None,
            )
        elif version or (versions and role == "production"):
            remark = _version(version)
            if ledger_row:
                remark += f" since {_time(ledger_row.time)}, by {ledger_row.who}: {ledger_row.why}"
            yield Check(
                name=role,
                ok=bool(version) if serving else None,
                remark=remark,
            )


def _refusals(status: ModelStatus) -> list[str]:
    """Return what serving refuses, and why."""
    if status.serving.value is None:
        return []
    resources = status.serving.value.ready["resources"]
    resource = resources.get(f"model {status.spec.name}", {})
    sentences: list[str] = resource.get("detail", "").split("; ")
    return sentences[1:]


def _monitoring(rows: ModelRows, at: datetime | None, now: datetime) -> Iterator[Check]:
    decision = rows.decisions[-1] if rows.decisions else None
    promotion = rows.newest("production")
    times = []
    if decision:
        times.append(decision.as_of)
    if promotion:
        times.append(promotion.time)
    since = max(times, default=None)
    remark = _time(decision.as_of) if decision else "none yet"
    ok = True if decision else None
    if since and now - since > MONITORING_LATE:
        ok = False
        remark += f"; at most {MONITORING_LATE / HOUR:.0f} h are expected"
    yield Check(
        name="last monitoring run",
        ok=ok,
        remark=remark,
        at=at,
        since=since,
    )
    if decision:
        production = promotion.to_version if promotion else decision.version
        yield _verdict(decision, production, rows)


def _verdict(decision: DecisionRow, production: str | None, rows: ModelRows) -> Check:
    remark = (
        f"version {decision.version}: {decision.verdict}; {decision.action} ({decision.rule}): "
        f"{decision.reason}"
    )
    ok = {"ok": True, "bad": False}.get(decision.verdict)
    if decision.version != production:
        ok = None
        remark = f"none yet of {_version(production)}; {remark}"
    since = decision.as_of
    for earlier in reversed(rows.decisions):
        if earlier.verdict != decision.verdict:
            break
        since = earlier.as_of
    return Check(
        name="verdict",
        ok=ok,
        remark=remark,
        at=decision.as_of,
        since=since,
    )


def _alerts(rows: ModelRows, at: datetime | None, now: datetime) -> Iterator[Check]:
    """Name each that is open, and each that nobody has heard."""
    open_alerts = rows.open_alerts(now)
    named_alerts = [
        alert for alert in rows.alerts if alert in open_alerts or not alert["delivered"]
    ]
    for alert in named_alerts:
        remark = alert["message"]
        if FAILED not in alert["cause"]:  # else the message says it in full
            remark = f"{alert['cause']} ({alert['count']} times): {remark}"
        if alert not in open_alerts:
            remark = f"not delivered: {remark}"
        elif not alert["delivered"]:
            remark = f"{remark}; not delivered yet"
        yield Check(
            name="alerts",
            ok=False,
            remark=remark,
            at=at,
            since=datetime.fromisoformat(alert["first"]),
        )
    if not named_alerts:
        yield Check("alerts", ok=True, remark="none open, none undelivered", at=at)


def _training(run: RunPage | None, at: datetime | None, now: datetime) -> Check:
    if run is None:
        return Check("last training", ok=None, remark="none yet", at=at)
    outcome = (
        run.tags.get("outcome") or run.tags.get("gate") or "nothing is written down yet"
    )
    end = f"ended {_time(run.ended)}" if run.ended else "goes on"
    ok = run.status not in {"FAILED", "KILLED"}
    if run.ended and outcome.startswith("refused") and now - run.ended < REFUSED_FOR:
        ok = False
    return Check(
        name="last training",
        ok=ok,
        remark=f"{run.status.lower()}, {end}, for {run.tags.get('reason')}: {outcome}",
        at=at,
        since=run.ended,
    )


def _version(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "never"

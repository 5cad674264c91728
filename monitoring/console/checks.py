"""Whether the loop is healthy, and why: pure functions of what is known."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from feature_repo.freshness import Freshness
from mlflow_server.alerts import FAILED
from mlflow_server.pages import RunPage
from mlflow_server.records import ModelRows
from monitoring.console.cached_reader import Reading
from monitoring.console.status import ModelStatus
from monitoring.serving_status import ServingStatus

HOUR = timedelta(hours=1)
LATE = 3 * HOUR
"""Monitoring runs are hourly: two missed."""
LAG_SECONDS = 30.0
REFUSED_FOR = 24 * HOUR
"""A training that its gates refused is worth a look for so long: a weekly one may well be."""


@dataclass(frozen=True)
class Check:
    """One line of a page. ok: None where it is not known. at: when it was so, UTC.

    since: UTC, since when it has been so, where that is known.
    """

    name: str
    ok: bool | None
    remark: str
    at: datetime | None = None
    since: datetime | None = None


def of_server(reading: Reading[ServingStatus]) -> Iterator[Check]:
    if reading.value is None:
        yield Check("serving", None, f"unknown: {reading.why}")
        return
    ready, at = reading.value.ready, reading.at
    yield Check("serving", ready["ready"], "ready" if ready["ready"] else "not ready", at)
    for name, resource in ready["resources"].items():
        yield Check(name, resource["ok"], resource["detail"], at)
    for log, lag in reading.value.sums("gyre_log_lag_seconds", "log").items():
        remark = f"rows waited {lag:.1f} s at most"
        yield Check(f"{log} on disk", lag <= LAG_SECONDS, remark, at)


def of_consumer(reading: Reading[str | None]) -> Check:
    if reading.at is None:
        return Check("consumer", None, f"unknown: {reading.why}")
    return Check("consumer", not reading.value, reading.value or "reads the events", reading.at)


def of_model(status: ModelStatus, now: datetime) -> Iterator[Check]:
    """Judge one model; a source that does not answer is a check of its own."""
    sources: dict[str, Reading[Any]] = {
        "versions in serving": status.serving,
        "aliases in MLflow": status.aliases,
        "ledger, verdicts, alerts": status.rows,
        "last training": status.runs,
        "features": status.freshness,
    }
    silent = {name: source.why for name, source in sources.items() if not source.at}
    yield from (Check(name, None, f"unknown: {why}") for name, why in silent.items())
    yield from _roles(status)
    if status.rows.value:
        yield from _of_rows(status.rows.value, status.rows.at, now)
    if status.runs.at:
        yield _training(status.runs.value, status.runs.at, now)
    if status.freshness.value:
        yield _features(status.freshness.value, status.freshness.at, now)


def _features(fresh: list[Freshness], at: datetime | None, now: datetime) -> Check:
    problems = [why for each in fresh for _, why in each.problems(now)]
    times = ((each.dataset, _time(each.watermark), _time(each.newest)) for each in fresh)
    texts = (f"{name} complete up to {end}, newest event {new}" for name, end, new in times)
    remark = "; ".join(problems or texts)
    ok = not problems if all(each.watermark for each in fresh) else None
    return Check("features", ok, remark, at)


def _roles(status: ModelStatus) -> Iterator[Check]:
    """Compare who says which version is in a role: production, and others that are taken."""
    serving, aliases, rows = status.serving.value, status.aliases.value, status.rows.value
    for role in ("production", "challenger", "shadow"):
        row = rows.newest(role) if rows else None
        versions: dict[str, str | None] = {}
        if serving:
            versions["workers"] = " and ".join(serving.versions(status.spec.name, role)) or None
        if aliases is not None:
            versions["MLflow's alias"] = aliases.get(role)
        if rows:
            versions["ledger"] = row.to_version if row else None
        version, *others = {*versions.values()} or {None}
        if others:
            said = [f"{source}: {_named(each)}" for source, each in versions.items()]
            ready = serving.ready["resources"] if serving else {}
            own = ready.get(f"model {status.spec.name}", {}).get("detail", "")
            said += own.split("; ")[1:]  # what serving refuses, and why
            yield Check(role, ok=False, remark="; ".join(said), since=row.time if row else None)
        elif version or (versions and role == "production"):
            why = f" since {_time(row.time)}, by {row.who}: {row.why}" if row else ""
            yield Check(role, bool(version) if serving else None, _named(version) + why)


def _of_rows(rows: ModelRows, at: datetime | None, now: datetime) -> Iterator[Check]:
    row = rows.decisions[-1] if rows.decisions else None
    promotion = rows.newest("production")
    times = [time for time in (row and row.as_of, promotion and promotion.time) if time]
    is_late = bool(times) and now - max(times) > LATE
    remark = _time(row.as_of) if row else "none yet"
    remark += f"; at most {LATE / HOUR:.0f} h are expected" if is_late else ""
    ok = False if is_late else bool(row) or None
    yield Check("last monitoring run", ok, remark, at, max(times, default=None))
    if row:
        ok = {"ok": True, "bad": False}.get(row.verdict)
        remark = f"version {row.version}: {row.verdict}; {row.action} ({row.rule}): {row.reason}"
        if promotion and row.version != promotion.to_version:
            ok = None
            remark = f"none yet of {_named(promotion.to_version)}; {remark}"
        same = takewhile(lambda each: each.verdict == row.verdict, reversed(rows.decisions))
        yield Check("verdict", ok, remark, row.as_of, [*same][-1].as_of)
    yield from _alerts(rows, at, now)


def _alerts(rows: ModelRows, at: datetime | None, now: datetime) -> Iterator[Check]:
    """Name each that is open, and each that nobody has heard."""
    still_open = rows.open_alerts(now)
    shown = [each for each in rows.alerts if each in still_open or not each["delivered"]]
    for alert in shown:
        cause = f"{alert['cause']} ({alert['count']} times): "
        remark = ("" if FAILED in cause else cause) + alert["message"]  # which says that in full
        if alert not in still_open:
            remark = f"not delivered: {remark}"
        elif not alert["delivered"]:
            remark = f"{remark}; not delivered yet"
        first = datetime.fromisoformat(alert["first"])
        yield Check("alerts", ok=False, remark=remark, at=at, since=first)
    if not shown:
        yield Check("alerts", ok=True, remark="none open, none undelivered", at=at)


def _training(run: RunPage | None, at: datetime | None, now: datetime) -> Check:
    if run is None:
        return Check("last training", None, "none yet", at)
    outcome = run.tags.get("outcome") or run.tags.get("gate") or "nothing is written down yet"
    ended = f"ended {_time(run.ended)}" if run.ended else "goes on"
    remark = f"{run.status.lower()}, {ended}, for {run.tags.get('reason')}: {outcome}"
    refused = outcome.startswith("refused") and run.ended and now - run.ended < REFUSED_FOR
    ok = run.status not in {"FAILED", "KILLED"} and not refused
    return Check("last training", ok, remark, at, run.ended)


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "never"

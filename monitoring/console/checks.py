"""Whether the loop is healthy, and why: pure functions of what is known."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mlflow_server.pages import RunPage
from mlflow_server.records import ModelRows
from monitoring.console.cached_reader import Reading
from monitoring.console.status import ModelStatus
from monitoring.serving_status import ServingStatus

LOOK, HOUR = timedelta(hours=3), timedelta(hours=1)
"""The monitor looks hourly: two missed."""
LAG_SECONDS = 30.0


@dataclass(frozen=True)
class Check:
    """ok: None where it is not known. said: in words. seen: when it was so, UTC."""

    what: str
    ok: bool | None
    said: str
    seen: datetime | None = None


def of_server(reading: Reading[ServingStatus]) -> Iterator[Check]:
    """Judge what a worker says of itself, and how long rows of each log wait for the disk."""
    if reading.value is None:
        yield Check("serving", None, f"unknown: {reading.why}")
        return
    ready, seen = reading.value.ready, reading.at
    yield Check("serving", ready["ready"], "ready" if ready["ready"] else "not ready", seen)
    for name, resource in ready["resources"].items():
        yield Check(name, resource["ok"], resource["detail"], seen)
    for log, lag in reading.value.sums("gyre_log_lag_seconds", "log").items():
        said = f"rows waited {lag:.1f} s at most"
        yield Check(f"{log} on disk", lag <= LAG_SECONDS, said, seen)


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
    if status.runs.value:
        yield _training(status.runs.value.training, status.runs.at)
    if fresh := status.freshness.value:
        problems = "; ".join(why for _, why in fresh.problems(now))
        said = f"complete up to {_time(fresh.watermark)}, newest event {_time(fresh.newest)}"
        ok = not problems if fresh.watermark else None
        yield Check("features", ok, problems or said, status.freshness.at)


def _roles(status: ModelStatus) -> Iterator[Check]:
    """Compare who says which version is in a role: production, and others that are taken."""
    serving, aliases, rows = status.serving.value, status.aliases.value, status.rows.value
    for role in ("production", "challenger", "shadow"):
        row = rows.newest(role) if rows else None
        told: dict[str, str | None] = {}
        if serving:
            told["workers"] = " and ".join(serving.versions(status.spec.name, role)) or None
        if aliases is not None:
            told["MLflow's alias"] = aliases.get(role)
        if rows:
            told["ledger"] = row.to_version if row else None
        version, *others = {*told.values()} or {None}
        if others:
            said = "; ".join(f"{source}: {_named(version)}" for source, version in told.items())
            yield Check(role, False, said)  # noqa: FBT003
        elif version or (told and role == "production"):
            why = f" since {_time(row.time)}, by {row.who}: {row.why}" if row else ""
            yield Check(role, bool(version) if serving else None, _named(version) + why)


def _of_rows(rows: ModelRows, seen: datetime | None, now: datetime) -> Iterator[Check]:
    """Judge the newest look of the monitor, its verdict, and the alerts."""
    row = rows.decisions[-1] if rows.decisions else None
    promotion = rows.newest("production")
    due = [at for at in (row and row.as_of, promotion and promotion.time) if at]
    late = bool(due) and now - max(due) > LOOK
    said = _time(row.as_of) if row else "no monitor has looked yet"
    said += f"; at most {LOOK / HOUR:.0f} h are expected" if late else ""
    yield Check("last look of the monitor", False if late else bool(row) or None, said, seen)
    if row:
        ok = {"ok": True, "bad": False}.get(row.verdict)
        said = f"version {row.version}: {row.verdict}; {row.action} ({row.rule}): {row.reason}"
        if promotion and row.version != promotion.to_version:
            ok = None
            said = f"none yet of {_named(promotion.to_version)}; {said}"
        yield Check("verdict", ok, said, row.as_of)
    alerts = [f"not delivered: {alert['cause']}" for alert in rows.undelivered()]
    alerts += [f"{a['cause']} ({a['count']} times): {a['message']}" for a in rows.open_alerts(now)]
    yield Check("alerts", not alerts, "; ".join(alerts) or "none open, none undelivered", seen)


def _training(run: RunPage | None, seen: datetime | None) -> Check:
    if run is None:
        return Check("last training", None, "none yet", seen)
    outcome = run.tags.get("outcome") or run.tags.get("gate") or "nothing is written down yet"
    ended = f"ended {_time(run.ended)}" if run.ended else "goes on"
    said = f"{run.status.lower()}, {ended}, for {run.tags.get('reason')}: {outcome}"
    return Check("last training", run.status not in {"FAILED", "KILLED"}, said, seen)


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "never"

"""Whether the loop is healthy, and why: pure functions of what is known."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from feature_repo.freshness import LATE
from mlflow_server.registry import PRODUCTION
from mlflow_server.roles import named
from serving.loop import Known
from serving.observed import Observed
from serving.readiness import UNKNOWN

LOOK = timedelta(hours=3)
"""The monitor looks hourly: two missed."""
LAG_SECONDS = 30.0
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Check:
    """ok: None where it is not known. said: in words. seen: when it was so, UTC."""

    what: str
    ok: bool | None
    said: str
    seen: datetime | None


def headline(checks: Sequence[Check]) -> str:
    wrong = sum(check.ok is False for check in checks)
    unknown = sum(check.ok is None for check in checks)
    if wrong:
        return f"The loop needs a look: {wrong} of {len(checks)} checks"
    return f"Nothing is known to be wrong; {unknown} unknown" if unknown else "The loop is healthy"


def worst_first(checks: Sequence[Check]) -> list[Check]:
    return sorted(checks, key=lambda check: (False, None, True).index(check.ok))


def of_server(ready: Mapping[str, Any], lags: Mapping[str, float], now: datetime) -> list[Check]:
    """Judge what a worker said of itself, and how long rows of each log wait for the disk."""
    found = [Check("serving", ready["ready"], "ready" if ready["ready"] else "not ready", now)]
    resources = ready["resources"].items()
    found += [Check(name, each["ok"], each["detail"], now) for name, each in resources]
    return found + [
        Check(f"{log} on disk", lag <= LAG_SECONDS, f"rows waited {lag:.1f} s at most", now)
        for log, lag in lags.items()
    ]


def of_model(known: Known, workers: Collection[str], now: datetime) -> list[Check]:
    """Judge one model. workers: versions that they answer with, as they count it."""
    return [
        _production(known, workers, now),
        *(Check("refused", False, f"version {v}: {why}", now)  # noqa: FBT003
          for v, why in known.state.refused.items()),
        _look(known, now),
        _verdict(known),
        _training(known),
        *_ages(known, now),
        _alerts(known, now),
    ]  # fmt: skip


def _production(known: Known, workers: Collection[str], now: datetime) -> Check:
    """Say what is in production; by each source, where they do not agree."""
    aliases, rows = known.aliases.value, known.rows.value
    row = rows.promotion if rows else None
    told = {"workers": " and ".join(sorted(workers)) or None}
    if aliases is not None:
        told["MLflow's alias"] = aliases.get(PRODUCTION)
    if rows is not None:
        told["ledger"] = row.to_version if row else None
    sources = {"MLflow's alias": known.aliases, "ledger": known.rows}
    silent = "".join(f"; {by}: {_unknown(of)}" for by, of in sources.items() if of.value is None)
    seen = min(at for at in (known.aliases.at, known.rows.at, now) if at)
    if len({*told.values()}) > 1:
        said = "; ".join(f"{by}: {named(version)}" for by, version in told.items()) + silent
        return Check(PRODUCTION, False, said, seen)  # noqa: FBT003
    said = named(told["workers"])
    if row:
        said += f" since {row.time:%Y-%m-%d %H:%M:%S} UTC, by {row.who}: {row.why}"
    ok = None if silent else told["workers"] is not None
    return Check(PRODUCTION, ok, said + silent, seen)


def _look(known: Known, now: datetime) -> Check:
    what, rows = "last look of the monitor", known.rows.value
    if rows is None:
        return Check(what, None, _unknown(known.rows), None)
    newest = rows.decisions[-1].as_of if rows.decisions else None
    due = [at for at in (newest, rows.promotion and rows.promotion.time) if at]
    late = bool(due) and now - max(due) > LOOK
    said = ago(newest, now) if newest else "no monitor has looked yet"
    said += f"; at most {LOOK / HOUR:.0f} h are expected" if late else ""
    return Check(what, False if late else bool(newest) or None, said, known.rows.at)


def _verdict(known: Known) -> Check:
    what, rows = "verdict", known.rows.value
    if rows is None or not rows.decisions:
        return Check(
            what, None, _unknown(known.rows) if rows is None else "none yet", known.rows.at
        )
    row, promotion = rows.decisions[-1], rows.promotion
    said = f"version {row.version}: {row.verdict}; {row.action} ({row.rule}): {row.reason}"
    if promotion and row.version != promotion.to_version:
        said = f"none yet of {named(promotion.to_version)}; {said}"
        return Check(what, None, said, row.as_of)
    return Check(what, {"ok": True, "bad": False}.get(row.verdict), said, row.as_of)


def _training(known: Known) -> Check:
    what, runs = "last training", known.runs
    if runs.value is None:
        return Check(what, None, _unknown(runs), None)
    run = runs.value.training
    if run is None:
        return Check(what, None, "none yet", runs.at)
    outcome = run.tags.get("outcome") or run.tags.get("gate") or "nothing is written down yet"
    ended = f"ended {run.ended:%Y-%m-%d %H:%M} UTC" if run.ended else "goes on"
    said = f"{run.status.lower()}, {ended}, for {run.tags.get('reason')}: {outcome}"
    return Check(what, run.status not in {"FAILED", "KILLED"}, said, runs.at)


def _ages(known: Known, now: datetime) -> list[Check]:
    """Whether features are as old as promised, and their source is not silent."""
    found, seen, source = known.freshness.value, known.freshness.at, known.spec.dataset
    limits = []
    if found:
        limits = [("features complete up to", found.watermark, LATE),
                  (f"newest event of {source}", found.newest, found.silence)]  # fmt: skip
    checks = []
    for what, moment, most in limits:
        age = ago(moment, now) if moment else "nothing was ingested yet"
        said = f"{age}; at most {most / HOUR:.0f} h are expected"
        checks.append(Check(what, now - moment <= most if moment else None, said, seen))
    return checks or [Check(f"features, {source}", None, _unknown(known.freshness), seen)]


def _alerts(known: Known, now: datetime) -> Check:
    rows = known.rows.value
    if rows is None:
        return Check("alerts", None, _unknown(known.rows), None)
    told = [f"not delivered: {alert['cause']}" for alert in rows.undelivered]
    told += [f"{a['cause']} ({a['count']} times): {a['message']}" for a in rows.open_alerts(now)]
    return Check(
        "alerts", not told, "; ".join(told) or "none open, none undelivered", known.rows.at
    )


def _unknown(seen: Observed[Any]) -> str:
    return f"{UNKNOWN}: {seen.why}"


def ago(at: datetime, now: datetime) -> str:
    """Return the moment, and how long ago it was."""
    minutes = max(0, int((now - at).total_seconds() // 60))
    age = f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"  # noqa: PLR2004
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({age} ago)"

"""What is up, what serves, how fresh: asked of each process now, never remembered."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from stack.airflow_api import AirflowApi
from stack.ending import members
from stack.errors import StackError
from stack.processes import states

if TYPE_CHECKING:
    from stack.settings import Settings

UNKNOWN = "unknown"


def report(settings: Settings, models: list[str]) -> dict[str, Any]:
    """Return the whole status as JSON-ready values; a source that is down is "unknown"."""
    rows = [_process(name, state) for name, state in (states(settings) or {}).items()]
    everything = sum(_pss(process) for process in members(settings.home))
    return {
        "up": bool(rows) and all(row["state"] == "RUNNING" for row in rows),
        "processes": rows,
        "pss_mib": round(everything / 2**20),
        "serving": _json(f"{settings.serving_address}/health/ready"),
        "models": {model: {"production": production(settings, model)} for model in models},
        "features_behind_seconds": _freshness(settings),
        "runs": _runs(settings, ["ingest", *(f"train_{model}" for model in models)]),
    }


def production(settings: Settings, model: str) -> str | None:
    """Return the version in production as MLflow says it; None if there is none, or "unknown"."""
    url = f"{settings.mlflow_address}/api/2.0/mlflow/registered-models/alias"
    try:
        answer = httpx.get(url, params={"name": model, "alias": "production"}, timeout=5)
        body = answer.json()
    except (httpx.HTTPError, ValueError):
        return UNKNOWN
    if answer.is_success:
        return str(body["model_version"]["version"])
    missing = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}  # no model, no such alias
    return None if body.get("error_code") in missing else UNKNOWN


def lines(status: dict[str, Any]) -> list[str]:
    """Return the status for a person."""
    text = [f"{'process':<16}{'state':<10}{'pid':>8}{'up':>10}{'PSS MiB':>9}"]
    text += [
        f"{row['name']:<16}{row['state'].lower():<10}{row['pid'] or '-':>8}"
        f"{_span(row['seconds']):>10}{row['pss_mib']:>9}"
        for row in status["processes"]
    ]
    if not status["processes"]:
        text = ["no supervisor is running here: make up"]
    text.append(f"{'all processes':<44}{status['pss_mib']:>9}")
    for name, facts in status["models"].items():
        since = f" since {facts['since'][:16]} UTC" if facts.get("since") else ""
        text.append(f"{name} in production: {facts['production'] or 'none yet'}{since}")
    text += _serving_lines(status["serving"])
    text += [
        f"features of {name}: complete up to {_span(seconds)} ago"
        for name, seconds in status["features_behind_seconds"].items()
    ]
    return text + [
        f"last run of {dag}: {run if run == UNKNOWN else _run(run)}"
        for dag, run in status["runs"].items()
    ]


def _serving_lines(ready: dict[str, Any] | str) -> list[str]:
    if isinstance(ready, str):
        return [f"serving: {ready}"]
    details = "; ".join(f"{name} {row['detail']}" for name, row in ready["resources"].items())
    return [f"serving: {'ready' if ready['ready'] else 'not ready'}: {details}"]


def _freshness(settings: Settings) -> dict[str, float]:
    """Return how far each model's online features are behind now, in seconds, as serving says."""
    pattern = r'(?m)^gyre_feature_watermark_age_seconds\{model="([^"]+)"\} (\d.*)$'
    try:
        text = httpx.get(f"{settings.serving_address}/metrics", timeout=3).text
    except httpx.HTTPError:
        return {}
    return {model: round(float(age)) for model, age in re.findall(pattern, text)}


def _process(name: str, state: dict[str, Any]) -> dict[str, Any]:
    pid, up = int(state["pid"]), state["statename"] == "RUNNING"
    tree: list[psutil.Process] = []
    with suppress(psutil.Error):
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []
    return {
        "name": name,
        "state": str(state["statename"]),
        "pid": pid or None,
        "seconds": int(time.time() - state["start"]) if up else 0,
        "pss_mib": round(sum(_pss(process) for process in tree) / 2**20),
    }


def _pss(process: psutil.Process) -> int:
    """Proportional set size in bytes: memory shared by n processes counts 1/n in each."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _json(url: str) -> dict[str, Any] | str:
    try:
        return dict[str, Any](httpx.get(url, timeout=3).json())
    except (httpx.HTTPError, ValueError):
        return UNKNOWN


def _runs(settings: Settings, dags: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with AirflowApi(settings, timeout=5) as api:
            for dag in dags:
                found[dag] = next(iter(api.last_runs(dag)), None)
    except StackError:
        return dict.fromkeys(dags, UNKNOWN)
    keys = ("dag_run_id", "state", "start_date", "end_date", "note")
    return {dag: run and {key: run[key] for key in keys} for dag, run in found.items()}


def _run(run: dict[str, Any] | None) -> str:
    if run is None:
        return "none yet"
    ended = run["end_date"] or run["start_date"]
    ago = datetime.now(UTC) - datetime.fromisoformat(ended) if ended else None
    when = f" {_span(ago.total_seconds())} ago" if ago else ""
    return f"{run['state']}{when}{': ' + run['note'] if run['note'] else ''}"


def _span(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"  # noqa: PLR2004

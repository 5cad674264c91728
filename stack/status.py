"""What is up, what serves, how fresh: asked of each process now, never remembered."""

from __future__ import annotations

import json
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
AGE = r'(?m)^gyre_feature_watermark_age_seconds\{model="([^"]+)"\} (\d.*)$'


def report(settings: Settings, models: list[str]) -> dict[str, Any]:
    """Return the whole status as JSON-ready values; a source that is down is "unknown"."""
    rows = [_process(name, state) for name, state in (states(settings) or {}).items()]
    if not rows:  # whoever answers on these ports is another stack
        return {
            "up": False, "processes": [], "pss_mib": 0, "serving": UNKNOWN,
            "models": {model: {"production": UNKNOWN} for model in models},
            "features_behind_seconds": {}, "runs": {},
        }  # fmt: skip
    serving = settings.serving_address
    ready = _json(_get(f"{serving}/health/ready"))
    return {
        "up": all(row["state"] == "RUNNING" for row in rows) and ready.get("ready") is True,
        "processes": rows,
        "pss_mib": _pss_mib(members(settings.home)),
        "serving": ready or UNKNOWN,
        "models": {model: {"production": production(settings, model)} for model in models},
        "features_behind_seconds": {
            model: round(float(age)) for model, age in re.findall(AGE, _get(f"{serving}/metrics"))
        },
        "runs": _runs(settings, ["ingest", *(f"train_{model}" for model in models)]),
    }


def production(settings: Settings, model: str) -> str | None:
    """Return the version in production as MLflow says it; None if there is none, or "unknown"."""
    url = f"{settings.mlflow_address}/api/2.0/mlflow/registered-models/alias"
    body = _json(_get(url, name=model, alias="production"))
    if "model_version" in body:
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
        late = facts.get("undelivered_alerts", [])
        text += [f"{name}: an alert is not delivered yet: {each}" for each in late]
    text += [f"left out: {each}" for each in status["broken_specs"]]
    text += [f"failing: {each}" for each in status["failing"]]
    text.append(f"serving: {_serving(status['serving'])}")
    for name, seconds in status["features_behind_seconds"].items():
        text.append(f"features of {name}: complete up to {_span(seconds)} ago")
    return text + [f"last run of {dag}: {_run(run)}" for dag, run in status["runs"].items()]


def _process(name: str, state: dict[str, Any]) -> dict[str, Any]:
    pid, up = int(state["pid"]), state["statename"] == "RUNNING"
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []
    except psutil.Error:
        tree = []
    return {
        "name": name,
        "state": str(state["statename"]),
        "pid": pid or None,
        "seconds": int(time.time() - state["start"]) if up else 0,
        "pss_mib": _pss_mib(tree),
    }


def _pss_mib(processes: list[psutil.Process]) -> int:
    """Proportional set size: memory shared by n processes counts 1/n in each."""
    found = 0
    for process in processes:
        with suppress(psutil.Error):
            found += process.memory_full_info().pss
    return round(found / 2**20)


def _get(url: str, **query: str) -> str:
    """Return whatever text it answers, with any status; an empty one if it does not."""
    try:
        return httpx.get(url, params=query, timeout=5).text
    except httpx.HTTPError:
        return ""


def _json(text: str) -> dict[str, Any]:
    try:
        return dict[str, Any](json.loads(text))
    except ValueError:
        return {}


def _runs(settings: Settings, dags: list[str]) -> dict[str, Any]:
    keys, found = ("dag_run_id", "state", "start_date", "end_date", "note"), {}
    try:
        with AirflowApi(settings, timeout=5) as api:
            for dag in dags:
                with suppress(StackError):  # one that Airflow has not read yet
                    run = next(iter(api.last_runs(dag)), None)
                    found[dag] = run and {key: run[key] for key in keys}
    except StackError:
        return dict.fromkeys(dags, UNKNOWN)
    return dict.fromkeys(dags, UNKNOWN) | found


def _serving(ready: dict[str, Any] | str) -> str:
    if isinstance(ready, str):
        return ready
    details = "; ".join(f"{name} {row['detail']}" for name, row in ready["resources"].items())
    return f"{'ready' if ready['ready'] else 'not ready'}: {details}"


def _run(run: dict[str, Any] | str | None) -> str:
    if run is None or isinstance(run, str):
        return run or "none yet"
    ended = run["end_date"] or run["start_date"]
    ago = datetime.now(UTC) - datetime.fromisoformat(ended) if ended else None
    when = f" {_span(ago.total_seconds())} ago" if ago else ""
    return f"{run['state']}{when}{': ' + run['note'] if run['note'] else ''}"


def _span(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"  # noqa: PLR2004

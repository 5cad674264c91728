"""`gyre status`: the console's checks, and the processes behind them; asked now, not remembered."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psutil
from rich.console import Group

from cli.terminal import as_text, table
from core.settings import Settings
from core.spec import broken_specs, load_specs
from mlflow_server.roles import PRODUCTION
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.checks import Check, of_model, of_server
from monitoring.console.status import ModelReaders, ModelStatus, since_the_last_run
from monitoring.serving_status import read_serving
from stack.processes import members, states

SHOWN = {"name": "name", "statename": "state", "description": "description"}
WORDS = {False: "look", None: "unknown", True: "ok"}  # the worst first
ORDER = [*WORDS.values()].index


def read_status(settings: Settings) -> dict[str, Any]:
    """Return the whole status as JSON-ready values; checks by model, and of serving."""
    rows = (states(settings) or {}).values()
    # Without processes whoever answers on these ports is another stack.
    is_ready, checks, cards = _checks(settings) if rows else (False, {}, {})
    return {
        "up": is_ready and all(row["statename"] == "RUNNING" for row in rows),
        "models": cards,
        "processes": [{name: row[key] for key, name in SHOWN.items()} for row in rows],
        "pss_mib": _memory(settings),
        "checks": {name: [asdict(check) for check in of] for name, of in checks.items()},
        "broken_specs": broken_specs(),
    }


def _checks(settings: Settings) -> tuple[bool, Mapping[str, list[Check]], dict[str, Any]]:
    """Return whether serving is ready, all checks, and a card for each model, the worst first."""
    serving = CachedReader(partial(read_serving, settings))
    models = {spec.name: ModelReaders(settings, spec, serving) for spec in load_specs()}
    readers = (reader for model in models.values() for reader in model.all)
    read_all([serving, *readers])
    now, found = datetime.now(UTC), serving.reading
    checks, cards = dict[str, list[Check]](), dict[str, Any]()
    for name, model in models.items():
        checks[name] = [*of_model(model.status(), now)]
        state = WORDS[min((check.ok for check in checks[name]), key=[*WORDS].index)]
        cards[name] = {"state": state, **card(model.status(), now)}
    is_ready = found.value is not None and found.value.ready["ready"] is True
    cards = dict(sorted(cards.items(), key=lambda item: ORDER(item[1]["state"])))
    return is_ready, checks | {"serving and its resources": [*of_server(found)]}, cards


def card(status: ModelStatus, now: datetime) -> dict[str, Any]:
    """Return a line's figures, None of what is not known; rates since the last monitoring run."""
    rows, fresh = status.rows.value, status.freshness.value or ()
    row = rows.newest(PRODUCTION) if rows else None
    last = rows.decisions[-1] if rows and rows.decisions else None
    version = row.to_version if row else None
    found = since_the_last_run(status, PRODUCTION, version, now) if version else "no version"
    did = {} if isinstance(found, str) else {name: round(x, 2) for name, x in found.items()}
    return {
        "version": version,
        "since": row and row.time,
        "requests_a_minute": did.get("requests a minute"),
        "p99_ms": did.get("p99 in ms"),
        "error_percent": did.get("failed, %"),
        "verdict": last and last.verdict,
        "complete_up_to": min((each.watermark for each in fresh if each.watermark), default=None),
        "open_alerts": len(rows.open_alerts(now)) if rows else None,
    }


def _memory(settings: Settings) -> int:
    """MiB of proportional set size: memory shared by n processes counts 1/n in each."""
    total = 0
    for process in members(settings.home):
        with suppress(psutil.Error):  # gone
            total += process.memory_full_info().pss
    return round(total / 2**20)


def shown(status: dict[str, Any]) -> Group:
    """Return the status for a person: what is wrong, the models, the processes."""
    wrong: list[Any] = [("look", "models", "left out", each) for each in status["broken_specs"]]
    for name, checks in status["checks"].items():
        wrong += [(WORDS[c["ok"]], name, c["name"], c["remark"]) for c in checks if not c["ok"]]
    wrong.sort(key=lambda line: ORDER(line[0]))
    models = list[Any]()
    for name, of in status["models"].items():
        figures = [f"{key.replace('_', ' ')} {as_text(value)}" for key, value in of.items()]
        models.append((name, of["state"], ", ".join(figures[1:])))
    rows = [(p["name"], p["state"].lower(), p["description"]) for p in status["processes"]]
    rows = rows or [("none", "", "no supervisor is running here: make up")]
    rows.append(("all processes", "", f"{status['pss_mib']} MiB"))
    heads = ("state", "of", "what", "why"), ("model", "state", "now"), ("process", "", "")
    filled = [table(*each) for each in zip(heads, (wrong, models, rows), strict=True) if each[1]]
    return Group(*(part for each in filled for part in (each, "")))

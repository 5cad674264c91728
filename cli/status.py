"""`gyre status`: the console's checks, and the processes behind them; asked now, not remembered."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psutil

from core.settings import Settings
from core.spec import broken_specs, load_specs
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.checks import Check, of_model, of_server
from monitoring.console.status import ModelReaders
from monitoring.serving_status import read_serving
from stack.processes import members, states

SHOWN = {"name": "name", "statename": "state", "description": "description"}
WORDS = {True: "ok", False: "look", None: "unknown"}


def status(settings: Settings) -> dict[str, Any]:
    """Return the whole status as JSON-ready values; checks by model, and of serving."""
    rows = (states(settings) or {}).values()
    # Without processes whoever answers on these ports is another stack.
    is_ready, checks = _checks(settings) if rows else (False, {})
    return {
        "up": is_ready and all(row["statename"] == "RUNNING" for row in rows),
        "processes": [{name: row[key] for key, name in SHOWN.items()} for row in rows],
        "pss_mib": _memory(settings),
        "checks": {name: [asdict(check) for check in of] for name, of in checks.items()},
        "broken_specs": broken_specs(),
    }


def _checks(settings: Settings) -> tuple[bool, Mapping[str, list[Check]]]:
    """Return whether serving is ready, and all checks."""
    serving = CachedReader(partial(read_serving, settings))
    models = {spec.name: ModelReaders(settings, spec, serving) for spec in load_specs()}
    read_all([serving, *(reader for model in models.values() for reader in model.all)])
    now, found = datetime.now(UTC), serving.reading
    checks = {name: [*of_model(model.status(), now)] for name, model in models.items()}
    is_ready = found.value is not None and found.value.ready["ready"] is True
    return is_ready, checks | {"serving and its resources": [*of_server(found)]}


def _memory(settings: Settings) -> int:
    """MiB of proportional set size: memory shared by n processes counts 1/n in each."""
    total = 0
    for process in members(settings.home):
        with suppress(psutil.Error):  # gone
            total += process.memory_full_info().pss
    return round(total / 2**20)


def lines(status: dict[str, Any]) -> Iterator[str]:
    """Return the status for a person."""
    if not status["processes"]:
        yield "no supervisor is running here: make up"
    for row in status["processes"]:
        yield f"{row['name']:<16}{row['state'].lower():<10}{row['description']}"
    yield f"{'all processes':<16}{status['pss_mib']:>5} MiB"
    for name, checks in status["checks"].items():
        yield f"{name}:"
        for check in checks:
            yield f"  {WORDS[check['ok']]:<9}{check['name']}: {check['remark']}"
    yield from (f"left out: {problem}" for problem in status["broken_specs"])

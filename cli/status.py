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
from feature_repo.broker import consumer_lags, consumer_problem
from mlflow_server.roles import PRODUCTION
from monitoring.console.cached_reader import CachedReader, read_all
from monitoring.console.checks import Check, of_events, of_model, of_server
from monitoring.console.status import ModelReaders, ModelStatus, since_the_last_run
from monitoring.serving_status import read_serving
from stack.processes import members, states

RATES = {
    "requests_a_minute": "requests a minute",
    "p99_ms": "p99 in ms",
    "error_percent": "failed, %",
}
"""Figures of a card, and their names in `monitoring.console.history.traffic`."""
Checks = dict[str, list[Check]]
"""By the model, or whatever else they are about."""
STATES = {False: "look", None: "unknown", True: "ok"}
WORST_FIRST = [*STATES.values()]


def read_status(settings: Settings) -> dict[str, Any]:
    """Return the whole status as JSON-ready values; checks by model, and of serving."""
    processes = [_process(row) for row in (states(settings) or {}).values()]
    is_ready = False
    checks: Checks = {}
    cards: dict[str, Any] = {}
    if processes:  # without any, whoever answers on these ports is another stack
        is_ready, checks, cards = _checks(settings)
    fields = {}
    for subject, subject_checks in checks.items():
        fields[subject] = [asdict(check) for check in subject_checks]
    are_running = all(process["state"] == "RUNNING" for process in processes)
    return {
        "up": is_ready and are_running,
        "models": cards,
        "processes": processes,
        "pss_mib": _memory(settings),
        "checks": fields,
        "broken_specs": broken_specs(),
    }


def _process(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is shown of a supervisor's process."""
    return {
        "name": row["name"],
        "state": row["statename"],
        "description": row["description"],
    }


def _checks(settings: Settings) -> tuple[bool, Checks, dict[str, Any]]:
    """Return whether serving is ready, all checks, and a card for each model, the worst first."""
    serving = CachedReader(partial(read_serving, settings))
    consumer = CachedReader(partial(consumer_problem, settings))
    lags = CachedReader(partial(consumer_lags, settings))
    readers: list[CachedReader[Any]] = [serving, consumer, lags]
    models = {}
    for spec in load_specs():
        model = ModelReaders(settings, spec, serving)
        models[spec.name] = model
        readers += model.all
    read_all(readers)
    now = datetime.now(UTC)
    checks: Checks = {}
    cards = {}
    for name, model in models.items():
        status = model.status()
        model_checks = [*of_model(status, now)]
        model_states = [STATES[check.ok] for check in model_checks]
        checks[name] = model_checks
        cards[name] = {
            "state": min(model_states, key=WORST_FIRST.index),
            **card(status, now),
        }
    names = sorted(cards, key=lambda name: WORST_FIRST.index(cards[name]["state"]))
    checks["serving and its resources"] = [
        *of_server(serving.reading),
        *of_events(consumer.reading, lags.reading, now),
    ]
    server = serving.reading.value
    is_ready = server is not None and server.ready["ready"] is True
    return is_ready, checks, {name: cards[name] for name in names}


def card(status: ModelStatus, now: datetime) -> dict[str, Any]:
    """Return a line's figures, None of what is not known; rates since the last monitoring run."""
    figures: dict[str, Any] = dict.fromkeys(
        (
            "version",
            "since",
            "requests_a_minute",
            "p99_ms",
            "error_percent",
            "verdict",
            "complete_up_to",
            "open_alerts",
        )
    )
    datasets = status.freshness.value or ()
    watermarks = [dataset.watermark for dataset in datasets]
    figures["complete_up_to"] = min(filter(None, watermarks), default=None)
    rows = status.rows.value
    if rows is None:
        return figures
    figures["open_alerts"] = len(rows.open_alerts(now))
    if rows.decisions:
        figures["verdict"] = rows.decisions[-1].verdict
    promotion = rows.newest(PRODUCTION)
    if promotion is None:
        return figures
    figures["version"] = promotion.to_version
    figures["since"] = promotion.time
    if promotion.to_version:
        traffic = since_the_last_run(
            status=status,
            role=PRODUCTION,
            version=promotion.to_version,
            now=now,
        )
        if not isinstance(traffic, str):  # which says why it is not known
            for name, label in RATES.items():
                if label in traffic:
                    figures[name] = round(traffic[label], 2)
    return figures


def _memory(settings: Settings) -> int:
    """MiB of proportional set size: memory shared by n processes counts 1/n in each."""
    total = 0
    for process in members(settings.home):
        with suppress(psutil.Error):  # it has ended
            total += process.memory_full_info().pss
    return round(total / 2**20)


def shown(status: dict[str, Any]) -> Group:
    """Return the status for a person: what is wrong, the models, the processes."""
    parts: list[Any] = []
    lines = _wrong_lines(status)
    if lines:
        parts += [table(("state", "of", "what", "why"), lines), ""]
    lines = _model_lines(status)
    if lines:
        parts += [table(("model", "state", "now"), lines), ""]
    parts += [table(("process", "", ""), _process_lines(status)), ""]
    return Group(*parts)


def _wrong_lines(status: dict[str, Any]) -> list[Any]:
    """Return a line for each check that is not ok, the worst first."""
    lines = [
        ("look", "models", "left out", problem) for problem in status["broken_specs"]
    ]
    for subject, checks in status["checks"].items():
        for check in checks:
            if not check["ok"]:
                state = STATES[check["ok"]]
                line = (
                    state,
                    subject,
                    check["name"],
                    check["remark"],
                )
                lines.append(line)
    return sorted(lines, key=lambda line: WORST_FIRST.index(line[0]))


def _model_lines(status: dict[str, Any]) -> list[Any]:
    """Return a line for each model: its name, its state, its figures."""
    lines = []
    for name, figures in status["models"].items():
        texts = []
        for figure, value in figures.items():
            if figure != "state":
                label = figure.replace("_", " ")
                texts.append(f"{label} {as_text(value)}")
        summary = ", ".join(texts)
        lines.append((name, figures["state"], summary))
    return lines


def _process_lines(status: dict[str, Any]) -> list[Any]:
    """Return a line for each process, and one for their memory."""
    lines: list[Any] = []
    for process in status["processes"]:
        state = process["state"].lower()
        lines.append((process["name"], state, process["description"]))
    if not lines:
        lines.append(("none", "", "no supervisor is running here: make up"))
    lines.append(("all processes", "", f"{status['pss_mib']} MiB"))
    return lines

"""`gyre status`: the console's cards and states, and the processes behind them; asked now."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Group

from cli.terminal import age, table
from cli.verbs import CONSOLE
from core.additions import is_present
from core.spec import broken_specs
from stack.readiness import answers
from stack.supervisor import members, states

if TYPE_CHECKING:
    from collections.abc import Mapping

    from core.settings import Settings

UNKNOWN = "unknown"


def read_status(settings: Settings) -> dict[str, Any]:
    """Return the whole status as JSON-ready values; `checks` has the states of the loop."""
    rows = states(settings) or {}
    processes = [
        {
            "name": name,
            "state": row["statename"],
            "description": row["description"],
        }
        for name, row in rows.items()
    ]
    are_running = all(process["state"] == "RUNNING" for process in processes)
    status: dict[str, Any] = {
        "up": False,
        "models": {},
        "problems": [],
        "checks": {},
        "processes": processes,
        "pss_mib": _memory(settings),
        "broken_specs": broken_specs(),
        "keys_behind": {},
    }
    if not processes:  # whoever answers on these ports is another stack
        return status
    if is_present(CONSOLE):
        status |= _loop_document(settings)
    else:
        status["up"] = answers("serving", "/health/ready")(settings) is None
    status["up"] = status["up"] and are_running
    return status


def _loop_document(settings: Settings) -> dict[str, Any]:
    """Return the console's cards, states and problems.

    `up` is whether serving is ready; `keys_behind` counts, by dataset, the keys of which the source
    has said for too long another row than the one that counts.
    """
    from monitoring.console.loop import Loop  # noqa: PLC0415
    from monitoring.console.states import problems  # noqa: PLC0415

    loop = Loop(settings).read()
    records = [
        record
        for status in loop.models.values()
        for record in status.freshness.value or ()
    ]
    return {
        "up": loop.is_ready,
        "models": {name: asdict(card) for name, card in loop.cards.items()},
        "checks": {
            subject: [*map(asdict, states_of_subject)]
            for subject, states_of_subject in loop.states.items()
        },
        "keys_behind": {
            record.dataset: record.behind for record in records if record.behind
        },
        "problems": [
            {
                "state": state.health,
                "of": subjects,
                "words": state.words,
                "remedy": state.remedy,
                "incident": state.number,
            }
            for state, subjects in problems(loop.states)
        ],
    }


def _memory(settings: Settings) -> int:
    """Return MiB of proportional set size: memory that n processes share counts 1/n in each."""
    total = 0
    for process in members(settings.home):
        with suppress(psutil.Error):  # it has ended
            total += process.memory_full_info().pss
    return round(total / 2**20)


def status_tables(status: dict[str, Any]) -> Group:
    """Return the status for a person: problems, models, processes."""
    parts: list[Any] = []
    lines = [
        ("attention", "models", f"a spec is left out: {problem}", "correct the file")
        for problem in status["broken_specs"]
    ]
    for problem in status["problems"]:
        of = ", ".join(problem["of"])
        lines.append((problem["state"], of, problem["words"], problem["remedy"]))
    if lines:
        parts += [table(("state", "of", "problem", "remedy"), lines), ""]
    cards = [_card_cells(name, card) for name, card in status["models"].items()]
    if cards:
        parts += [table([*cards[0]], [[*cells.values()] for cells in cards]), ""]
    parts += [
        f"{dataset}: keys that differ from their source: {count}; to let it win: "
        f"gyre ingest {dataset} --source-wins\n"
        for dataset, count in status["keys_behind"].items()
    ]
    if not is_present(CONSOLE):
        parts += [f"models are not shown: the package {CONSOLE} is not installed", ""]
    parts += [table(("process", "", ""), _process_lines(status)), ""]
    return Group(*parts)


def _card_cells(name: str, card: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a model by the head of their column; as many as 80 characters take.

    Its verdict, features and alerts are in its state and its problems.
    """
    since = card["since"]
    return {
        "model": name,
        "state": card["word"],
        "version": card["version"] or UNKNOWN,
        "since": age(since) if since else UNKNOWN,
        "req/min": _text(card["requests_per_minute"], "{:.1f}"),
        "p99": _text(card["p99_ms"], "{:.1f} ms"),
        "errors": _text(card["failed_share"], "{:.2%}"),
    }


def _text(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _process_lines(status: dict[str, Any]) -> list[Any]:
    """Return a line for each process, and one for their memory."""
    lines = [
        (process["name"], process["state"].lower(), process["description"])
        for process in status["processes"]
    ]
    if not lines:
        lines.append(("none", "", "no supervisor is running here: gyre up"))
    lines.append(("all processes", "", f"{status['pss_mib']} MiB"))
    return lines

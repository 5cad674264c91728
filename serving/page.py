"""The status page: one look at what serves, since when and why. No script, nothing fetched.

A source that does not answer is shown as unknown, never as zero or as nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from stack.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow_server.ledger import LedgerRow
    from serving.health import Health
    from serving.holder import Holder
    from serving.metrics import Metrics
    from stack.settings import Settings

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.5rem 0 .3rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}div{overflow-x:auto}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;vertical-align:top}
.bad{color:#a00}
"""
UNKNOWN = "unknown"
ROWS = 10


def status_page(settings: Settings, health: Health, metrics: Metrics) -> str:
    """Whole document. May wait for the ledger's database: call it from a thread."""
    ready, found = health.ready()
    states = [(name, r["detail"], r["ok"]) for name, r in found["resources"].items()]
    links = [
        ("API", "/docs"), ("metrics", "/metrics"),
        ("MLflow", settings.mlflow_address), ("Airflow", settings.airflow_address),
    ]  # fmt: skip
    anchors = " · ".join(f'<a href="{escape(to)}">{name}</a>' for name, to in links)
    state = "ready" if ready else '<span class="bad">not ready</span>'
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Gyre</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><h1>Gyre serving: {state}</h1><p>{anchors}</p>"
        f"{_facts(states)}{''.join(_model(holder, metrics) for holder in health.holders)}</html>"
    )


def _model(holder: Holder, metrics: Metrics) -> str:
    now = datetime.now(UTC)
    try:
        rows: Sequence[LedgerRow] | None = holder.ledger_rows()
    except RegistryError:
        rows = None
    watermark, current = holder.features.watermark, holder.current
    facts: list[tuple[str, str, bool]] = [
        ("version", current.version if current else holder.state, current is not None),
        ("loaded", _moment(current.loaded_at, now) if current else UNKNOWN, True),
        ("in production since", _since(rows, now), True),
        ("features complete up to", _moment(watermark, now) if watermark else UNKNOWN, True),
        ("requests so far", f"{metrics.total(metrics.requests, model=holder.spec.name)}", True),
    ]
    return f"<h2>{escape(holder.spec.name)}</h2>{_facts(facts)}<h2>Ledger</h2>{_ledger(rows)}"


def _since(rows: Sequence[LedgerRow] | None, now: datetime) -> str:
    applied = [r for r in rows or () if r.state == "applied" and r.role == "production"]
    if not applied:
        return UNKNOWN if rows is None else "no promotion yet"
    last = applied[-1]
    return f"{_moment(last.time, now)}, by {last.who}: {last.why}"


def _moment(at: datetime, now: datetime) -> str:
    minutes = max(0, int((now - at).total_seconds() // 60))
    age = f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"  # noqa: PLR2004
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({age} ago)"


def _facts(facts: Iterable[tuple[str, str, bool]]) -> str:
    return _table(
        (escape(name), f"<span{'' if ok else ' class=bad'}>{escape(text)}</span>")
        for name, text, ok in facts
    )


def _ledger(rows: Sequence[LedgerRow] | None) -> str:
    if not rows:
        return f"<p>{UNKNOWN if rows is None else 'no row yet'}</p>"
    names = ("time", "from", "to", "why", "who", "role", "percent", "state")
    head = tuple(f"<b>{name}</b>" for name in names)
    found = [
        {**row.as_json(), "time": f"{row.time:%Y-%m-%d %H:%M:%S}"} for row in reversed(rows[-ROWS:])
    ]
    return _table([head, *(tuple(_cell(row[name]) for name in names) for row in found)])


def _cell(value: Any) -> str:
    return "-" if value is None else escape(str(value))


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<div><table>{body}</table></div>"

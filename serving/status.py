"""What people and Prometheus read: metrics of all processes, and a page without scripts."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from math import isfinite
from typing import Any

import httpx
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from serving.announcement import Held
from serving.keeper import Follower
from serving.readiness import UNKNOWN
from serving.routes import refusals
from stack.settings import Settings

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.5rem 0 .3rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}div{overflow-x:auto}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;vertical-align:top}
"""
DATA_DOCS = "/data-docs"
BY_KEEPER = refusals(statuses=(401, 503))
COLUMNS = ("time", "from", "to", "why", "who", "role", "percent", "state")
ROWS = 10


def add_status(router: APIRouter, settings: Settings, followers: Sequence[Follower]) -> None:
    @router.get("/metrics", response_class=PlainTextResponse, responses=BY_KEEPER)
    def metrics() -> Response:
        return Response(generate_latest(_counted()), media_type=CONTENT_TYPE_LATEST)

    @router.get("/", response_class=HTMLResponse, responses=BY_KEEPER)
    def page() -> HTMLResponse:
        return HTMLResponse(status_page(settings, _readiness(settings), followers))


def _counted() -> CollectorRegistry:
    """What all processes counted."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def _readiness(settings: Settings) -> dict[str, Any]:
    """What a worker says of itself."""
    try:
        found: dict[str, Any] = httpx.get(f"{settings.serving_address}/health/ready").json()
    except (httpx.HTTPError, ValueError) as exc:
        return {"ready": False, "resources": {"worker": {"ok": False, "detail": str(exc)}}}
    return found


def status_page(settings: Settings, ready: dict[str, Any], followers: Sequence[Follower]) -> str:
    links = {"API": "/docs", "metrics": "/metrics",
             "MLflow": settings.mlflow_address, "Airflow": settings.airflow_address}  # fmt: skip
    links |= _validated(settings)
    anchors = " · ".join(f'<a href="{escape(to)}">{name}</a>' for name, to in links.items())
    found = ready["resources"].items()
    said = [(name, "ok" if r["ok"] else "not ok", r["detail"]) for name, r in found]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Gyre</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><h1>Gyre serving: {'' if ready['ready'] else 'not '}ready</h1>"
        f"<p>{anchors}</p>{_table(said)}{''.join(map(_model, followers))}</html>"
    )


def _validated(settings: Settings) -> dict[str, str]:
    """Great Expectations' page on the newest batch of each dataset and frame.

    Not its index, which is empty without scripts from elsewhere.
    """
    docs = settings.data_docs
    found = sorted(page.relative_to(docs) for page in docs.glob("*/validations/**/*.html"))
    return {f"data: {page.parts[0]}": f"{DATA_DOCS}/{page}" for page in found}


def _model(follower: Follower) -> str:
    name, state, ledger = follower.spec.name, follower.state, follower.history()
    promoted = [r for r in ledger or () if r.state == "applied" and r.role == "production"]
    last = promoted[-1] if promoted else None
    since = f"{_moment(last.time)}, by {last.who}: {last.why}" if last else "no promotion yet"
    samples = [sample for family in _counted().collect() for sample in family.samples]
    of_model = [each for each in samples if each.labels.get("model") == name]
    requests = _by("status", of_model, "gyre_requests_total")
    seconds, timed = (_by("route", of_model, f"gyre_request_seconds_{x}") for x in ("sum", "count"))
    times = [f"{route}: {1000 * seconds[route] / n:.2f} ms" for route, n in timed.items() if n]
    ages = _by("model", of_model, "gyre_feature_watermark_age_seconds")
    known = [timedelta(seconds=age) for age in ages.values() if isfinite(age)]
    facts = [
        *((role, _held(role, held)) for role, held in state.roles.items()),
        *(("refused", f"version {v}: {why}") for v, why in state.refused.items()),
        ("in production since", UNKNOWN if ledger is None else since),
        ("features complete up to", _moment(datetime.now(UTC) - known[0] if known else None)),
        (f"newest event of {follower.spec.dataset}", _moment(state.newest_event)),
        ("requests so far", ", ".join(f"{n:.0f} with {code}" for code, n in requests.items()) or 0),
        ("mean time to answer", ", ".join(times) or UNKNOWN),
    ]
    shown = [
        row.as_json() | {"time": f"{row.time:%Y-%m-%d %H:%M:%S}"}
        for row in reversed((ledger or [])[-ROWS:])
    ]
    rows = [["-" if row[name] is None else row[name] for name in COLUMNS] for row in shown]
    found = _table([COLUMNS, *rows]) if rows else UNKNOWN if ledger is None else "no row yet"
    return (
        f"<h2>{escape(name)}</h2>{_table(facts)}<h2>Verdicts</h2>{_verdicts(follower)}"
        f"<h2>Ledger</h2>{found}"
    )


def _held(role: str, held: Held) -> str:
    return f"version {held.version}" + (f" for {held.percent} %" if role == "challenger" else "")


def _by(label: str, samples: Iterable[Any], name: str) -> dict[str, float]:
    """Sums of the samples called `name` by the value of `label`."""
    found: dict[str, float] = {}
    for sample in (each for each in samples if each.name == name):
        value = sample.labels[label]
        found[value] = found.get(value, 0) + sample.value
    return found


def _verdicts(follower: Follower) -> str:
    """What the monitor last decided, above a plot of the largest drift it may act on."""
    rows = follower.decisions()
    if not rows:
        return UNKNOWN if rows is None else "no monitor has looked yet"
    passive = {f"psi_{name}" for name in follower.spec.drift.informative}
    drifts = ([v for name, v in row.figures.items()
               if name.startswith("psi_") and name not in passive and isfinite(v)]
              for row in rows)  # fmt: skip
    largest = [max(values) for values in drifts if values]  # a window too small has none
    shown = [
        (f"{row.as_of:%Y-%m-%d %H:%M}", row.version, row.verdict, row.action, row.reason)
        for row in reversed(rows[-ROWS:])
    ]
    head = ("time", "version", "verdict", "action", "reason")
    plot = _plot(largest, follower.spec.drift.significant) if largest else ""
    return plot + _table([head, *shown])


def _plot(values: Sequence[float], limit: float) -> str:
    """A line of `values` over time, and the limit they are held against, as a small picture."""
    top, width, height = max(*values, limit) * 1.1, 400, 60
    step = width / max(len(values) - 1, 1)
    points = " ".join(f"{i * step:.1f},{height * (1 - v / top):.1f}" for i, v in enumerate(values))
    edge = height * (1 - limit / top)
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:25rem;width:100%">'
        f"<title>largest PSI of each window; the dashed line is {limit}</title>"
        f'<line x1="0" x2="{width}" y1="{edge:.1f}" y2="{edge:.1f}" stroke="#b00" '
        f'stroke-dasharray="4"/><polyline points="{points}" fill="none" stroke="#036" '
        'stroke-width="2"/></svg>'
    )


def _moment(at: datetime | None) -> str:
    if at is None:
        return UNKNOWN
    minutes = max(0, int((datetime.now(UTC) - at).total_seconds() // 60))
    age = f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"  # noqa: PLR2004
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({age} ago)"


def _table(rows: Iterable[Iterable[object]]) -> str:
    cells = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<div><table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></div>"

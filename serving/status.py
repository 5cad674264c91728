"""What people, probes and Prometheus read: readiness, metrics, and a page without scripts."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from math import isfinite
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.responses import HTMLResponse, Response

from serving.edge import json_response
from serving.holder import Holder
from serving.metrics import REQUESTS, SECONDS
from serving.prediction_log import AppendLog
from stack.settings import Settings

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.5rem 0 .3rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}div{overflow-x:auto}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;vertical-align:top}
"""
UNKNOWN = "unknown"
"""What a source that does not answer is shown as: never as zero or as nothing."""
DATA_DOCS = "/data-docs"
COLUMNS = ("time", "from", "to", "why", "who", "role", "percent", "state")
ROWS = 10


def add_status(
    router: APIRouter, settings: Settings, holders: Sequence[Holder], logs: Sequence[AppendLog]
) -> None:
    default = next(h for h in holders if h.spec.name == settings.default_model)

    @router.get("/health/live")
    async def live() -> Response:
        return json_response({"live": True})

    @router.get("/health/ready")
    async def ready() -> Response:
        found = readiness(default, holders, logs)
        return json_response(found, 200 if found["ready"] else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/")
    def page() -> HTMLResponse:  # in a thread: it may wait for the ledger's database
        return HTMLResponse(status_page(settings, readiness(default, holders, logs), holders))


def readiness(
    default: Holder, holders: Sequence[Holder], logs: Sequence[AppendLog]
) -> dict[str, Any]:
    """What each resource said when it was last asked. Ready: model and online store answer.

    MLflow or the log being down is shown and does not count: answers go on without them. So does
    another model that has no version yet: `GET /v1/models/{name}` tells of each.
    """
    redis, mlflow = default.features.down, default.registry_problem
    resources = {
        **{f"model {h.spec.name}": (h.current is not None, h.state) for h in holders},
        **{f"features of {h.spec.name}": _built(h) for h in holders},
        "redis": (redis is None, redis or "answers"),
        "mlflow": (mlflow is None, mlflow or "answers"),
        **{f"{log.kind} log": (not log.problem, log.problem or "is written") for log in logs},
    }
    shown = {name: {"ok": ok, "detail": detail} for name, (ok, detail) in resources.items()}
    return {"ready": default.current is not None and redis is None, "resources": shown}


def _built(holder: Holder) -> tuple[bool, str]:
    """Whether what was published of the model's features was also computed."""
    found = holder.features.not_built
    return found == [], UNKNOWN if found is None else "; ".join(found) or "are built"


def status_page(settings: Settings, ready: dict[str, Any], holders: Sequence[Holder]) -> str:
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
        f"<p>{anchors}</p>{_table(said)}{''.join(map(_model, holders))}</html>"
    )


def _validated(settings: Settings) -> dict[str, str]:
    """Great Expectations' page on the newest batch of each dataset and frame.

    Not its index, which is empty without scripts from elsewhere.
    """
    docs = settings.data_docs
    found = sorted(page.relative_to(docs) for page in docs.glob("*/validations/**/*.html"))
    return {f"data: {page.parts[0]}": f"{DATA_DOCS}/{page}" for page in found}


def _model(holder: Holder) -> str:
    name, current, ledger = holder.spec.name, holder.current, holder.history()
    promoted = [r for r in ledger or () if r.state == "applied" and r.role == "production"]
    last = promoted[-1] if promoted else None
    since = f"{_moment(last.time)}, by {last.who}: {last.why}" if last else "no promotion yet"
    requests = _by("status", REQUESTS, "_total", name)
    seconds, timed = (_by("route", SECONDS, end, name) for end in ("_sum", "_count"))
    times = [f"{route}: {1000 * seconds[route] / n:.2f} ms" for route, n in timed.items() if n]
    facts = [
        ("version", current.version if current else holder.state),
        ("loaded", _moment(current.loaded_at if current else None)),
        ("in production since", UNKNOWN if ledger is None else since),
        ("features complete up to", _moment(holder.features.watermark)),
        (f"newest event of {holder.spec.dataset}", _moment(holder.features.newest_event)),
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
        f"<h2>{escape(name)}</h2>{_table(facts)}<h2>Verdicts</h2>{_verdicts(holder)}"
        f"<h2>Ledger</h2>{found}"
    )


def _by(label: str, metric: Counter | Histogram, ending: str, model: str) -> dict[str, float]:
    """Sums of a metric of `model` by the value of `label`."""
    found: dict[str, float] = {}
    for sample in (sample for family in metric.collect() for sample in family.samples):
        if sample.name.endswith(ending) and sample.labels["model"] == model:
            value = sample.labels[label]
            found[value] = found.get(value, 0) + sample.value
    return found


def _verdicts(holder: Holder) -> str:
    """What the monitor last decided, above a plot of the largest drift it may act on."""
    rows = holder.decisions()
    if not rows:
        return UNKNOWN if rows is None else "no monitor has looked yet"
    passive = {f"psi_{name}" for name in holder.spec.drift.informative}
    drifts = ([v for name, v in row.figures.items()
               if name.startswith("psi_") and name not in passive and isfinite(v)]
              for row in rows)  # fmt: skip
    largest = [max(values) for values in drifts if values]  # a window too small has none
    shown = [
        (f"{row.as_of:%Y-%m-%d %H:%M}", row.version, row.verdict, row.action, row.reason)
        for row in reversed(rows[-ROWS:])
    ]
    head = ("time", "version", "verdict", "action", "reason")
    plot = _plot(largest, holder.spec.drift.significant) if largest else ""
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

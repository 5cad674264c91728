"""The status pages: whether the loop is healthy and why, and all that is known of one model."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any

import httpx
import jinja2

from mlflow_server.roles import WHOLE
from serving.counted import Counted
from serving.health import Check, ago, headline, of_model, of_server, worst_first
from serving.loop import STAMP, Known
from serving.readiness import UNKNOWN
from stack.settings import Settings

TEMPLATE = Path(__file__).with_name("status_page.html")
DATA_DOCS, MODEL_PAGE = "/data-docs", "/status"
LEDGER = ("time", "from", "to", "why", "who", "role", "percent", "applied_at")
ALERTS = ("last", "cause", "count", "message", "delivered", "first")
ROWS, SHOWN = 20, 120
"""Rows of a table; characters of a text, its rest a click away."""


def ready_of(settings: Settings) -> dict[str, Any]:
    """Ask a worker what it says of itself."""
    try:
        found: dict[str, Any] = httpx.get(f"{settings.serving_address}/health/ready").json()
    except (httpx.HTTPError, ValueError) as exc:
        return {"ready": False, "resources": {"worker": {"ok": False, "detail": str(exc)}}}
    return found


def front_page(
    settings: Settings,
    ready: Mapping[str, Any],
    found: Sequence[Known],
    counted: Counted,
    now: datetime,
) -> str:
    lags = counted.sums("gyre_log_lag_seconds", "log")
    groups: list[tuple[str, str | None, list[Check]]] = []
    for known in found:
        name = known.spec.name
        checks = of_model(known, counted.answering(name), now)
        groups.append((name, f"{MODEL_PAGE}/{name}", worst_first(checks)))
    groups.append(("serving", None, worst_first(of_server(ready, lags, now))))
    links = {"API": "/docs", "metrics": "/metrics",
             "MLflow": settings.mlflow_address, "Airflow": settings.airflow_address}  # fmt: skip
    said = headline([check for *_, checks in groups for check in checks])
    return _render("front", title=said, now=now, groups=groups,
                   links=links | _validated(settings))  # fmt: skip


def model_page(settings: Settings, known: Known, counted: Counted, now: datetime) -> str:
    """Show one model: what holds a role, what was asked, verdicts, alerts, ledger, its runs."""
    name = known.spec.name
    checks = worst_first(of_model(known, counted.answering(name), now))
    return _render(
        "model", title=name, said=headline(checks), now=now, groups=[("loop", None, checks)],
        links=_links(settings, known), facts=_facts(known, counted, now),
        **_tables(known), plot=_plot(known),
    )  # fmt: skip


def _render(block: str, **values: Any) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(page=block, unknown=UNKNOWN, shown=SHOWN, **values)


def _validated(settings: Settings) -> dict[str, str]:
    """Great Expectations' page on the newest batch of each dataset and frame.

    Not its index, which is empty without scripts from elsewhere.
    """
    docs = settings.data_docs
    found = sorted(page.relative_to(docs) for page in docs.glob("*/validations/**/*.html"))
    return {f"data: {page.parts[0]}": f"{DATA_DOCS}/{page}" for page in found}


def _links(settings: Settings, known: Known) -> dict[str, str]:
    """Pages elsewhere on this model; of MLflow's runs those that it named."""
    found = {"all models": "/", "MLflow": f"{settings.mlflow_address}/#/models/{known.spec.name}"}
    runs = known.runs.value
    if runs is None:
        return found
    addresses = {
        "model card": runs.card,
        "run of the version in production": runs.production and runs.production.address,
        "last training": runs.training and runs.training.address,
        "its monitoring": runs.monitoring and runs.monitoring.address,
    }
    return found | {name: address for name, address in addresses.items() if address}


def _facts(known: Known, counted: Counted, now: datetime) -> list[tuple[str, object]]:
    name, roles = known.spec.name, known.state.roles
    requests = counted.sums("gyre_requests_total", "status", model=name)
    took, timed = (
        counted.sums(f"gyre_request_seconds_{part}", "route", model=name)
        for part in ("sum", "count")
    )
    times = [f"{route}: {1000 * took[route] / n:.2f} ms" for route, n in timed.items() if n]
    ages = counted.sums("gyre_feature_watermark_age_seconds", "model", model=name)
    online = [ago(now - timedelta(seconds=age), now) for age in ages.values() if isfinite(age)]
    shares = {role: "" if held.percent == WHOLE else f" for {held.percent} %"
              for role, held in roles.items()}  # fmt: skip
    return [
        *((role, f"version {held.version}{shares[role]}") for role, held in roles.items()),
        ("features online up to, as a worker reads them", online[0] if online else UNKNOWN),
        (
            "requests since serving began",
            ", ".join(f"{n:.0f} with {code}" for code, n in requests.items()) or 0,
        ),
        ("mean time to answer", ", ".join(times) or UNKNOWN),
    ]


def _tables(known: Known) -> dict[str, Any]:
    """Rows to show, the newest first; None: not known."""
    rows, runs = known.rows.value, known.runs.value
    if rows is None:
        return dict.fromkeys(("decisions", "ledger", "alerts", "figures"))
    reports = runs.reports if runs else {}
    decisions = [
        (row, reports.get(f"{row.as_of:{STAMP}}")) for row in reversed(rows.decisions[-ROWS:])
    ]
    return {
        "decisions": decisions,
        "figures": rows.decisions[-1].figures if rows.decisions else {},
        "ledger": _cells(LEDGER, [row.as_json() for row in rows.ledger]),
        "alerts": _cells(ALERTS, sorted(rows.alerts, key=lambda row: str(row["last"]))),
    }


def _cells(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    return [{name: row[name] for name in columns} for row in reversed(rows[-ROWS:])]


def _plot(known: Known) -> dict[str, Any] | None:
    """A line of the largest PSI that the loop may act on, over the windows that have one."""
    decisions = known.rows.value.decisions if known.rows.value else ()
    limits = known.spec.drift
    drifts = [limits.acted_on(row.figures).values() for row in decisions]
    values = [max(psi) for psi in drifts if psi]
    if not values:
        return None
    width, height, top = 400, 60, max(*values, limits.significant) * 1.1
    step = width / max(len(values) - 1, 1)
    line = [f"{i * step:.1f},{height * (1 - v / top):.1f}" for i, v in enumerate(values)]
    return {
        "width": width, "height": height, "limit": limits.significant,
        "edge": f"{height * (1 - limits.significant / top):.1f}", "points": " ".join(line),
    }  # fmt: skip

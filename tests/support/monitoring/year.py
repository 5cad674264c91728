"""A year of a loop's rows, as monitoring runs, promotions and ingests leave them in a home."""

import json
import math
from contextlib import closing
from datetime import timedelta

import pyarrow as pa

from core.files import replace_file
from core.tables.table import Table
from feature_engine.ingest.record import (
    DAYS,
    RECORD,
    DatasetRecord,
    IngestReport,
    record_file,
)
from mlflow_server.alerts import Alerts
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from monitoring.check import CheckResult
from monitoring.decisions.store import RESULTS, DecisionRow

HOURS = 365 * 24
WEEK = 7 * 24
PERIOD = 6 * WEEK
"""Hours after which figures come again: to make other ones takes seconds."""
METRICS = {"log_loss": 0.55, "auc": 0.72, "f1": 0.61, "accuracy": 0.69}
TRAFFIC = {
    "serving/requests_per_minute": 60, "serving/p50_ms": 2, "serving/p99_ms": 9,
    "volume/entities": 500, "serving/failures": 0.001,
}  # fmt: skip
LIMIT = 0.25
RULE_RESULTS = [
    {
        "rule": {"type": f"expect_{kind}", "kwargs": kwargs, "severity": "critical"},
        "observed": observed,
        "examples": examples,
        "rows": len(examples),
        "events": kind.startswith("column_values"),
        "outcome": outcome,
    }
    for kind, kwargs, observed, examples, outcome in (
        ("column_values_to_be_between", {"column": "dollar_value", "min_value": 0,
         "max_value": 10_000, "mostly": 0.95}, None, [-1.0], "set aside"),
        ("table_row_count_to_be_between", {"min_value": 1}, 40, [], "ok"),
        ("column_pair_values_a_to_be_greater_than_b", {"column_A": "due", "column_B": "made"},
         None, [], "ok"),
    )
]  # fmt: skip


def version_at(hour):
    """A version a fortnight, `hour` hours before now."""
    return 1 + (HOURS - hour) // (2 * WEEK)


def psi(hour, place):
    """Two features drift for 30 hours every six weeks, and now."""
    hour %= PERIOD
    drift = 0.4 if place < 2 and hour < 30 else 0.0
    return round(drift + 0.03 + 0.02 * math.sin(hour / 17 + place), 4)


def results(spec, hour):
    """What a monitoring run finds, about as many figures as a real one."""
    checks = []
    for place, feature in enumerate(spec.features):
        value = psi(hour, place)
        reason = spec.monitoring.monitor_only.get(feature, "")
        more = {
            "status": "bad" if value > LIMIT else "ok",
            "remedy": f"A retraining starts by itself: `gyre decide {spec.name} --explain`",
            "link": f"/status/{spec.name}?tab=checks",
            "acts": not reason,
            "reason": reason,
        }
        checks += [
            figure(f"psi/{feature}", "data_drift", value, LIMIT, **more),
            figure(f"ks/{feature}", "ks", value / 10),
            figure(f"missing/{feature}", "missing", value / 10, 0.05),
        ]
    wave = math.sin(hour / 12)
    for name, usual in METRICS.items():
        limit = usual + (0.05 if name == "log_loss" else -0.05)
        for group in ("online", "backfilled"):
            value = usual + 0.02 * wave
            checks.append(figure(f"{group}/{name}", "performance_drift", value, limit))
    return checks + [
        figure(name, "serving", usual + usual * wave / 2)
        for name, usual in TRAFFIC.items()
    ]


def figure(name, kind, value, limit=None, **more):
    texts = {"words": f"{name} is {value:.3f}"} | more
    return CheckResult(
        name=name, kind=kind, value=round(value, 4), limit=limit, **texts
    )


def decision_row(**values):
    """A decision; what is not given is that of a good window."""
    usual = {
        "verdict": "ok",
        "action": "nothing",
        "rule": "ok",
        "reason": "no actionable drift",
        "cause": "",
        "words": "",
        "inputs": "{}",
        "entities": 900,
    }
    return DecisionRow(**usual | values)


def decision(spec, now, hour):
    version = f"{version_at(hour)}"
    drift = psi(hour, 0)
    changes = {"serving": "{}", "words": "ok: no feature drifts, f1 0.61 holds"}
    if drift > LIMIT:
        why = f"{next(iter(spec.features))}: PSI {drift:.2f}"
        changes |= {
            "verdict": "bad", "action": "retrain", "rule": "drift", "reason": why,
            "cause": f"drift of version {version}", "words": f"bad: {why}, limit 0.25",
        }  # fmt: skip
    inputs = json.dumps({"verdicts": ["ok"] * 100})
    as_of = now - timedelta(hours=hour)
    return decision_row(
        model=spec.name, version=version, as_of=as_of, inputs=inputs, **changes
    )


def ledger_rows(spec, now):
    for version in range(1, version_at(1) + 1):
        at = now - timedelta(hours=HOURS - (version - 1) * 2 * WEEK)
        before = f"{version - 1}" if version > 1 else None
        why = "drift: total_orders_30d: PSI 0.43"
        yield LedgerRow(spec.name, version, "production", 100, before, f"{version}",
                        "airflow:asset_triggered", why, "runs:/0", at, at)  # fmt: skip


def fill(settings, spec, now):
    """Leave hourly monitoring runs of `spec` up to `now`, and what belongs to them."""
    fill_decisions(settings, spec, now)
    with closing(Alerts(settings)) as alerts:
        for weeks in range(1, 52, 6):
            cause = f"drift of version {version_at(weeks * WEEK)}"
            text = "bad: total_orders_30d: PSI 0.43; retrain"
            alerts.note(spec.name, cause, text, now - timedelta(weeks=weeks))
        alerts.deliver(spec.name, now)
    with closing(Ledger(settings)) as ledger:
        for row in ledger_rows(spec, now):
            ledger.insert(row)
    fill_dataset(settings, spec.dataset, now)


def fill_decisions(settings, spec, now):
    """Write both tables at once: a commit for each run would take an hour."""
    texts = [RESULTS.dump_json(results(spec, hour)).decode() for hour in range(PERIOD)]
    decisions = []
    checks = []
    for hour in range(HOURS, 0, -1):
        row = decision(spec, now, hour)
        decisions.append(vars(row))
        text = texts[hour % PERIOD]
        checks.append({"model": spec.name, "as_of": row.as_of, "results": text})
    for name, stored in (("decisions", decisions), ("checks", checks)):
        rows = pa.Table.from_pylist(stored)
        Table(settings, name, rows.schema).merge(rows, ["model", "as_of"], ["model"])


def fill_dataset(settings, name, now, late=0):
    """Leave what an ingest does; its features are complete up to `late` hours ago."""
    watermark = now - timedelta(hours=late)
    days = {(now - timedelta(days=n)).date(): 900 + n for n in range(DAYS)}
    record = DatasetRecord(
        dataset=name,
        as_of=now,
        watermark=watermark,
        newest=watermark,
        silence=timedelta(hours=48),
        rows=days,
        quarantined={"not null (customer_id)": 3},
        remark="2 rows are older than 400 days",
        services=["customer_churn_v1"],
        views=["customer_features"],
        ingests=[ingest(name, now, number) for number in range(30)],
    )
    replace_file(record_file(settings, name), RECORD.dump_json(record))
    results = {"as_of": now.isoformat(), "rows": 40, "rules": RULE_RESULTS}
    replace_file(settings.data_docs / name / "index.json", json.dumps(results))


def ingest(name, now, number):
    """The report of an ingest, every 20 minutes; one was stopped."""
    return IngestReport(
        dataset=name,
        as_of=now - number * timedelta(minutes=20),
        inserted=number * 37 % 90,
        quarantined=number % 3,
        late=number % 4,
        passed=number != 5,
    )

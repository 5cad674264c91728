"""A year of a loop's rows, as monitoring runs, promotions and ingests leave them in a home.

`python -m tests.console.year HOME` fills one to look at; the tests time the pages on it.
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import sqlalchemy as sql

from core.files import replace_file
from core.settings import Settings
from core.spec import load_specs
from core.storage import Table
from feature_repo.dataset_record import DAYS, RECORD, DatasetRecord, record_file
from mlflow_server.alerts import ALERTS, Alerts
from mlflow_server.ledger import TABLE, Ledger, LedgerRow
from monitoring.check import CheckResult
from monitoring.decision_log import RESULTS, DecisionRow

HOURS = 365 * 24
WEEK = 7 * 24
DRIFTED = range(20, 30)
"""Hours before now in which the newest drift was seen."""
METRICS = {"log_loss": 0.55, "auc": 0.72, "f1": 0.61, "accuracy": 0.69}
LIMIT = 0.25


def version_at(hour):
    """A version a fortnight, `hour` hours before now."""
    return 1 + (HOURS - hour) // (2 * WEEK)


def psi(hour, place):
    drifts = 0.4 if hour in DRIFTED or hour % (6 * WEEK) < 30 and hour > WEEK else 0.0  # noqa: RUF021
    return round(
        0.03 + 0.02 * math.sin(hour / 17 + place) + (drifts if place < 2 else 0), 4
    )


def results(spec, hour):
    """What a monitoring run finds, about as many figures as a real one."""
    checks = []
    for place, feature in enumerate(spec.features):
        value = psi(hour, place)
        reason = spec.monitoring.monitor_only.get(feature, "")
        drift = CheckResult(
            name=f"psi/{feature}",
            kind="data_drift",
            status="ok" if value <= LIMIT else "note" if reason else "bad",
            value=value,
            limit=LIMIT,
            words=f"{feature} drifts: PSI {value:.2f}, limit {LIMIT}",
            remedy=f"A retraining starts by itself: `gyre decide {spec.name} --explain`",
            link=f"/status/{spec.name}#history",
            feature=feature,
            acts=not reason,
            reason=reason,
        )
        checks.append(drift)
        checks.append(figure(f"ks/{feature}", "ks", value / 10))
        checks.append(figure(f"missing/{feature}", "missing", value / 10, 0.05))
    for name, usual in METRICS.items():
        value = usual + 0.02 * math.sin(hour / 50)
        limit = usual + (0.05 if name == "log_loss" else -0.05)
        for group in ("online", "backfilled"):
            metric = figure(f"{group}/{name}", "performance_drift", value, limit)
            checks.append(metric)
    wave = math.sin(hour / 12)
    checks += [
        figure("serving/requests_per_minute", "serving", 60 + 40 * wave),
        figure("serving/p50_ms", "serving", 2 + wave),
        figure("serving/p99_ms", "serving", 9 + 4 * wave),
        figure("volume/entities", "volume", 500 + 40 * wave),
        figure("serving/failures", "serving", 0.001, 0.05),
    ]
    return checks


def figure(name, kind, value, limit=None):
    words = f"{name} is {value:.3f}"
    return CheckResult(
        name=name, kind=kind, value=round(value, 4), limit=limit, words=words
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
    worst = max(psi(hour, place) for place in range(len(spec.features)))
    bad = worst > LIMIT
    action = "retrain" if bad and psi(hour + 1, 0) < LIMIT else "nothing"
    why = f"{next(iter(spec.features))}: PSI {worst:.2f}"
    return decision_row(
        model=spec.name,
        version=f"{version_at(hour)}",
        as_of=now - timedelta(hours=hour),
        verdict="bad" if bad else "ok",
        action=action,
        rule="drift" if action == "retrain" else "answered" if bad else "ok",
        reason=why if bad else "no actionable drift",
        cause=f"drift of version {version_at(hour)}",
        words=f"bad: {why}, limit 0.25"
        if bad
        else "ok: no feature drifts, f1 0.61 holds",
        inputs=json.dumps({"verdicts": ["ok"] * 100, "findings": [why]}),
        entities=500,
        serving="{}",
    )


def ledger_rows(spec, now):
    for version in range(1, version_at(1) + 1):
        at = now - timedelta(hours=HOURS - (version - 1) * 2 * WEEK)
        before = f"{version - 1}" if version > 1 else None
        why = "drift: total_orders_30d: PSI 0.43"
        yield LedgerRow(spec.name, version, "production", 100, before, f"{version}",
                        "airflow:asset_triggered", why, "runs:/0", at, at)  # fmt: skip


def alerts(spec, now):
    for weeks in range(1, 52, 6):
        first = now - timedelta(weeks=weeks)
        yield {
            "model": spec.name,
            "cause": f"drift of version {version_at(weeks * WEEK)}",
            "message": "bad: total_orders_30d: PSI 0.43; retrain",
            "first": first.isoformat(),
            "last": (first + timedelta(hours=9)).isoformat(),
            "details": None,
            "count": 3,
            "delivered": True,
        }


def fill(settings, spec, now, hours=HOURS):
    """Leave `hours` hourly monitoring runs of `spec` up to `now`, and what belongs to them."""
    fill_decisions(settings, spec, now, hours)
    with closing(Alerts(settings)) as opened, opened._engine.begin() as connection:
        connection.execute(sql.insert(ALERTS), [*alerts(spec, now)])
    with closing(Ledger(settings)) as ledger, ledger._engine.begin() as connection:
        promoted = [row.as_json() for row in ledger_rows(spec, now)]
        connection.execute(sql.insert(TABLE), promoted)
    fill_dataset(settings, spec.dataset, now)


def fill_decisions(settings, spec, now, hours):
    """Write both tables at once: a commit for each run would take an hour."""
    rows = []
    checks = []
    for hour in range(hours, 0, -1):
        values = asdict(decision(spec, now, hour))
        texts = {
            name: value if isinstance(value, str | datetime) else json.dumps(value)
            for name, value in values.items()
        }
        rows.append(texts)
        text = RESULTS.dump_json(results(spec, hour)).decode()
        place = {"model": spec.name, "as_of": values["as_of"]}
        checks.append(place | {"results": text})
    for name, stored in (("decisions", rows), ("checks", checks)):
        time = {"as_of": pa.timestamp("us", tz="UTC")}
        schema = pa.schema(dict.fromkeys(stored[0], pa.string()) | time)
        table = Table(settings, name, schema)
        table.merge(pa.Table.from_pylist(stored, schema), ["model", "as_of"], ["model"])


def fill_dataset(settings, name, now, late=0):
    """Leave what an ingest does; its features are complete up to `late` hours ago."""
    watermark = now - timedelta(hours=late)
    days = {
        (now - timedelta(days=n)).date(): 900 + 70 * (n % 7)
        for n in range(DAYS)
        if n != 4
    }
    rules = {
        "expect_column_values_to_be_between (quantity)": 12,
        "not null (customer_id)": 3,
    }
    record = DatasetRecord(
        dataset=name,
        as_of=now,
        watermark=watermark,
        newest=watermark,
        silence=timedelta(hours=48),
        rows=days,
        quarantined=rules,
        delivery_rules=("expect_column_values_to_be_unique(order_id)",),
        remark="2 rows are older than 400 days",
    )
    replace_file(record_file(settings, name), RECORD.dump_json(record))


if __name__ == "__main__":
    HOME = Settings(home=Path(sys.argv[1]).resolve())
    for spec in load_specs():
        fill(HOME, spec, datetime.now(UTC).replace(minute=0, second=0, microsecond=0))

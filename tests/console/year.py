"""A year of a loop's rows, as monitoring runs, promotions and ingests leave them in a home.

`python -m tests.console.year HOME` fills one to look at; the tests time the pages on it.
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql

from core.files import replace_file
from core.settings import Settings
from core.spec import ModelSpec, load_specs
from feature_repo.dataset_record import DAYS, RECORD, DatasetRecord, record_file
from mlflow_server.ledger import TABLE, Ledger, LedgerRow
from mlflow_server.records import ALERTS, DECISIONS, WINDOWS, Records
from mlflow_server.window_details import (
    DETAILS,
    Bin,
    CalibrationBin,
    MeasuredMetric,
    SegmentRate,
    WindowDetails,
)
from monitoring.serving_status import COUNTS, Counted

if TYPE_CHECKING:
    from collections.abc import Iterator

HOURS = 365 * 24
WEEK = 7 * 24
BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
DRIFTED = range(20, 30)
"""Hours before now in which the newest drift was seen."""
METRICS = {"log_loss": 0.55, "auc": 0.72, "f1": 0.61, "accuracy": 0.69}


def version_at(hour: int) -> int:
    """A version a fortnight, `hour` hours before now."""
    return 1 + (HOURS - hour) // (2 * WEEK)


def psi(hour: int, place: int) -> float:
    drifts = 0.4 if hour in DRIFTED or hour % (6 * WEEK) < 30 and hour > WEEK else 0.0  # noqa: RUF021
    return round(
        0.03 + 0.02 * math.sin(hour / 17 + place) + (drifts if place < 2 else 0), 4
    )


def counted(hour: int) -> str:
    hours = (HOURS - hour) % (2 * WEEK)
    timed = 3600 * hours + 900 * hours % 700
    within = tuple(
        (bound, timed * min(1.0, 0.5 + n / 10)) for n, bound in enumerate(BOUNDS)
    )
    did = Counted(timed // 1000, timed, within, timed)
    counters = {f"production {version_at(hour)}": {"http://127.0.0.1:8000": did}}
    return COUNTS.dump_json(counters).decode()


def decision(spec: ModelSpec, now: datetime, hour: int) -> dict[str, Any]:
    figures = {
        f"psi_{name}": psi(hour, place) for place, name in enumerate(spec.features)
    }
    figures |= {"psi_score": psi(hour, 9), "entities": 500 + 40 * math.sin(hour / 24)}
    worst = max(figures[f"psi_{name}"] for name in spec.features)
    for name, value in METRICS.items():
        figures |= {f"online_{name}": value, f"backfilled_{name}": value + 0.01}
    bad = worst > spec.monitoring.psi_significant
    first = psi(hour + 1, 0) < spec.monitoring.psi_significant
    action = "retrain" if bad and first else "nothing"
    why = (
        f"{next(iter(spec.features))}: PSI {worst:.2f}"
        if bad
        else "no actionable drift"
    )
    return {
        "model": spec.name,
        "version": f"{version_at(hour)}",
        "as_of": (now - timedelta(hours=hour)).isoformat(),
        "verdict": "bad" if bad else "ok",
        "action": action,
        "rule": "drift" if action == "retrain" else "answered" if bad else "ok",
        "reason": why,
        "cause": f"drift of version {version_at(hour)}",
        "inputs": json.dumps({"verdicts": ["ok"] * 100, "findings": [why]}),
        "figures": json.dumps(figures),
        "counted": counted(hour),
    }


def details(hour: int) -> WindowDetails:
    bins = [
        Bin(n / 20, (n + 1) / 20, 0.1 * math.exp(-(((n - 8) / 5) ** 2)),
            0.1 * math.exp(-(((n - 9) / 4) ** 2))) for n in range(20)
    ]  # fmt: skip
    measured = {
        name: MeasuredMetric(value + 0.02 * math.sin(hour / 50), value - 0.05, value + 0.05,
                             value - 0.01, value + 0.1) for name, value in METRICS.items()
    }  # fmt: skip
    calibration = tuple(
        CalibrationBin(n / 10 + 0.05, n / 11 + 0.05, 50) for n in range(10)
    )
    reference = tuple(
        CalibrationBin(n / 10 + 0.05, n / 10 + 0.04, 90) for n in range(10)
    )
    quantiles = {f"feature_{n}": (1.0, 2.0, 3.0, 4.0, 5.0) for n in range(9)}
    return WindowDetails(
        scores=tuple(bins),
        quantiles=quantiles,
        reference_quantiles=quantiles,
        performance={"online": measured, "backfilled": measured},
        calibration={"online": calibration, "reference": reference},
        segments={
            "new": SegmentRate(0.30, 0.42, 90),
            "repeat": SegmentRate(0.25, 0.27, 250),
            "loyal": SegmentRate(0.10, 0.08, 160),
        },
    )


def ledger_rows(spec: ModelSpec, now: datetime) -> Iterator[LedgerRow]:
    for version in range(1, version_at(1) + 1):
        at = now - timedelta(hours=HOURS - (version - 1) * 2 * WEEK)
        who = "out of band" if version % 9 == 0 else "airflow:asset_triggered"
        before = f"{version - 1}" if version > 1 else None
        why = "drift: total_orders_30d: PSI 0.43"
        yield LedgerRow(spec.name, version, "production", 100, before, f"{version}", who, why,
                        "runs:/0", at, at)  # fmt: skip


def alert(
    subject: str, cause: str, message: str, first: datetime, last: datetime
) -> Any:
    return {"model": subject, "cause": cause, "message": message, "first": first.isoformat(),
            "last": last.isoformat(), "details": None, "count": 3, "delivered": True}  # fmt: skip


def alerts(spec: ModelSpec, now: datetime) -> Iterator[dict[str, Any]]:
    for weeks in range(1, 52, 6):
        first = now - timedelta(weeks=weeks)
        cause = f"drift of version {version_at(weeks * WEEK)}, labels up to 2026-08-01"
        message = "bad: total_orders_30d: PSI 0.43; retrain"
        yield alert(spec.name, cause, message, first, first + timedelta(hours=9))


def fill(
    settings: Settings, spec: ModelSpec, now: datetime, hours: int = HOURS
) -> None:
    """Leave `hours` hourly monitoring runs of `spec` up to `now`, and what belongs to them."""
    with closing(Records(settings)) as records, records._engine.begin() as connection:
        rows = [decision(spec, now, hour) for hour in range(hours, 0, -1)]
        connection.execute(sql.insert(DECISIONS), rows)
        texts = [DETAILS.dump_json(details(hour)).decode() for hour in range(50)]
        windows = [{"model": spec.name, "as_of": row["as_of"], "details": texts[n % 50]}
                   for n, row in enumerate(rows)]  # fmt: skip
        connection.execute(sql.insert(WINDOWS), windows)
        connection.execute(sql.insert(ALERTS), [*alerts(spec, now)])
    with closing(Ledger(settings)) as ledger, ledger._engine.begin() as connection:
        promoted = [row.as_json() for row in ledger_rows(spec, now)]
        connection.execute(sql.insert(TABLE), promoted)
    fill_dataset(settings, spec.dataset, now)


def fill_dataset(settings: Settings, name: str, now: datetime, late: int = 0) -> None:
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
    for each in load_specs():
        fill(HOME, each, datetime.now(UTC).replace(minute=0, second=0, microsecond=0))

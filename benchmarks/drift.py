"""Drift over a long window: ten million logged predictions of ten features.

    python -m benchmarks.drift [logged rows, ten million if not given]

The rows are the table `predictions` as the monitor finds it: nine numbers and a category as JSON,
of distinct entities, all within the window's 24 hours; one row in a thousand is of no entity.
Timed are reading the window and Evidently's report on a sample of 200,000 rows a
side. Beside it Evidently alone, with its own PSI, on frames of a million rows x 20 columns that
are in memory already. Three rounds, interleaved, each a process of its own; seconds are without
imports, peak memory is with them. In our favour: files are in the page cache, and Evidently alone
reports on all rows. Against us: it reads no table, and parses no JSON.
"""

from __future__ import annotations

import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from deltalake import write_deltalake

from benchmarks.support.measure import (
    child,
    median,
    promised,
    ratio,
    rounds_of,
    start,
    title,
)
from core.settings import load_settings
from core.spec.monitoring import Monitoring
from training.evaluation.psi import UsualSpread
from training.evaluation.reference import Reference

APPENDS, COLUMNS, PEER_ROWS, REFERENCE = 20, 20, 1_000_000, 100_000
UNTIL = datetime(2026, 11, 20, 12, tzinfo=UTC)
NUMBERS, SEGMENTS = [f"number_{n}" for n in range(9)], ["new", "repeat", "loyal"]
FEATURES = dict.fromkeys(NUMBERS, "float64") | {"segment": "string"}
LOGGED = """
SELECT uuid()::VARCHAR AS request_id, 'm' AS model, '1' AS version, 0::BIGINT AS created,
  'production' AS "role",
  TIMESTAMPTZ '2026-11-19 12:00:01Z' + to_microseconds(86398000000 * i // {rows}) AS received,
  received AS as_of, CASE WHEN i % 1000 > 0 THEN i::VARCHAR END AS entity,
  to_json(drawn)::VARCHAR AS features, 'online' AS features_from,
  hash(i, 'p') % 1000000 / 1e6 AS probability, round(probability) AS prediction,
  true AS in_population, NULL::VARCHAR AS error, NULL::DOUBLE AS seconds
FROM (SELECT i, struct_pack({drawn}) AS drawn FROM range({first}, {last}) AS rows(i))"""


def prepare(home: Path, rows: int) -> None:
    """The table as monitoring/log/collect.py leaves it."""
    from monitoring.log.tables import predictions  # noqa: PLC0415

    table = predictions(load_settings(home=home))
    drawn = [
        f"{name} := round(hash(i, '{name}') % 1000000 / 977.0, 2)" for name in NUMBERS
    ]
    drawn.append(f"segment := {SEGMENTS}[1 + (hash(i, 'segment') % 3)::INT]")
    with duckdb.connect(config={"memory_limit": "3GB"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for append in range(APPENDS):
            first, last = rows * append // APPENDS, rows * (append + 1) // APPENDS
            sql = LOGGED.format(
                rows=rows, first=first, last=last, drawn=", ".join(drawn)
            )
            # Not as the collector does, which first reads all request ids.
            write_deltalake(
                table.path, connection.sql(sql).to_arrow_reader(), mode="append"
            )


def reference() -> Reference:
    draw = np.random.default_rng(0)
    numbers = (draw.random((REFERENCE, len(NUMBERS))) * 1e6 / 977).round(2)
    segment = draw.choice(np.array(SEGMENTS, object), REFERENCE)
    frame = pd.DataFrame(numbers, columns=NUMBERS)
    rows = frame.assign(
        segment=segment, score=draw.random(REFERENCE), label=float("nan")
    )
    return Reference(
        rows=rows,
        features={},
        snapshot=UNTIL,
        threshold=0.5,
        evaluated={},
        spread=UsualSpread(),
    )


def ours(home: str) -> dict[str, float]:
    import evidently.metrics  # noqa: F401, PLC0415  (takes seconds, which are not counted)

    from mlflow_server.roles import RoleAssignment  # noqa: PLC0415
    from monitoring.checks.report import report_results  # noqa: PLC0415
    from monitoring.log.window import read_window  # noqa: PLC0415

    before = reference()
    settings = load_settings(home=Path(home))
    began = time.perf_counter()
    seen = read_window(settings, RoleAssignment("m", 0), "1", FEATURES, UNTIL)
    results = report_results(Monitoring(), before, seen.rows, [], Path(home))
    seconds = time.perf_counter() - began
    psi = [result.value or 0 for result in results if result.name.startswith("psi/")]
    assert max(psi) <= 0.01
    assert sum(seen.left_out.values()) >= len(seen.rows) // 1001
    return {"seconds": seconds}


def evidently(_home: str) -> dict[str, float]:
    from evidently import Dataset, Report  # noqa: PLC0415
    from evidently.metrics import ValueDrift  # noqa: PLC0415

    draw = np.random.default_rng(0)
    names = [str(n) for n in range(COLUMNS)]
    frames = [
        pd.DataFrame(draw.random((PEER_ROWS, COLUMNS)), columns=names) for _ in range(2)
    ]
    began = time.perf_counter()
    metrics: list[Any] = [
        ValueDrift(column=name, method="psi", threshold=0.25) for name in names
    ]
    Report(metrics).run(*map(Dataset.from_pandas, frames)).save_html(os.devnull)
    return {"seconds": time.perf_counter() - began}


PEERS = {"ours": ours, "evidently": evidently}


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name:
        title(
            f"drift of {rows:,} x {len(FEATURES)}, Evidently's of {PEER_ROWS:,} x {COLUMNS}"
        )
        prepare(Path(name), rows)
        rounds = rounds_of(PEERS, lambda peer: child("drift", peer, name))
        promised("drift to Evidently alone", ratio(rounds, "ours", "evidently"), 1, "x")
        promised("peak memory of drift", median(rounds, "ours", "mb"), 2000, "MB")


if __name__ == "__main__":
    start(main, 10_000_000, PEERS)

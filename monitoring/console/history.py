"""A model's monitoring runs as pictures show them, and what its changes of versions were."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from math import isfinite

from mlflow_server.ledger import LedgerRow
from mlflow_server.records import DecisionRow, Records
from mlflow_server.roles import PRODUCTION
from mlflow_server.window_details import WindowDetails
from monitoring.console.charts import Point
from monitoring.serving_status import COUNTS, Counters, did

SPANS = {7: 1, 30: 6, 365: 24}
"""Days that a page can show, and of how many hours it then shows one monitoring run."""

DRAWN = ("psi_", "online_", "backfilled_", "entities")
"""How figures that are drawn begin."""


@dataclass(frozen=True)
class History:
    """figures: points by name, as decisions have them (psi_…, online_…), the largest now first.

    traffic: points by what `traffic` says. newest: details of the run at `at`, None: not known.
    """

    figures: Mapping[str, Sequence[Point]]
    traffic: Mapping[str, Sequence[Point]]
    newest: WindowDetails | None
    at: datetime | None


def read_history(records: Records, model: str, since: datetime, hours: int) -> History:
    rows, newest = (
        records.decisions_since(model, since, hours),
        records.decisions(model, 1),
    )
    rows += [row for row in newest if rows and row.as_of > rows[-1].as_of]
    moments = [row.as_of for row in (*rows, *newest)]
    details = records.details(model, min(moments, default=since), moments)
    at = newest[0].as_of if newest else None
    return History(
        _figures(rows, details), _traffic(rows), details.get(at) if at else None, at
    )


def traffic(
    key: str, now: Counters, earlier: Counters, time: timedelta
) -> dict[str, float]:
    """Return what "role version" did between two readings of serving's counters, if anything."""
    new = did(key, now, earlier)
    rows, slow = new.answered + new.failed, new.quantile(0.99)
    shown = {"requests a minute": new.timed / max(time / timedelta(minutes=1), 1)}
    shown |= {} if slow is None else {"p99 in ms": slow * 1000}
    return shown | ({"failed, %": 100 * new.failed / rows} if rows else {})


def _figures(
    rows: Sequence[DecisionRow], details: Mapping[datetime, WindowDetails]
) -> dict[str, list[Point]]:
    points = defaultdict[str, list[Point]](list)
    for row in rows:
        text, own = _text(row), details.get(row.as_of, WindowDetails())
        measured = {
            f"{k}_{m}": v for k, by in own.performance.items() for m, v in by.items()
        }
        for name, value in row.figures.items():
            if name.startswith(DRAWN) and isfinite(value):
                found = measured.get(name)
                interval = (found.low, found.high) if found else (None, None)
                points[name].append(Point(row.as_of, value, text, *interval))
    return dict(sorted(points.items(), key=lambda each: -each[1][-1].value))


def _traffic(rows: Sequence[DecisionRow]) -> dict[str, list[Point]]:
    counted = [(row, COUNTS.validate_json(row.counted)) for row in rows if row.counted]
    points = defaultdict[str, list[Point]](list)
    for (before, earlier), (row, now) in pairwise(counted):
        key, time = f"{PRODUCTION} {row.version}", row.as_of - before.as_of
        for name, value in traffic(key, now, earlier, time).items():
            points[name].append(Point(row.as_of, value, _text(row)))
    return points


def _text(row: DecisionRow) -> str:
    return f"{row.as_of:%Y-%m-%d %H:%M} UTC, version {row.version}: {row.verdict}"


def change(rows: Sequence[LedgerRow], row: LedgerRow) -> str:
    """Say in a word what a row of the ledger did; `rows` are all of its model."""
    if not row.applied_at:
        return "not applied"
    if row.who == "out of band":
        return row.who
    if row.who.startswith("mlflow-ui"):
        return "by hand in MLflow"
    if row.role != PRODUCTION:
        return "rollout" if row.to_version else "ended"
    before = (each for each in rows if each.sequence < row.sequence and each.applied_at)
    there = {each.to_version for each in before if each.role == PRODUCTION}
    return "rollback" if row.to_version in there else "promotion"

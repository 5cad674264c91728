"""Features of windows, and rows to compute them from."""

from datetime import UTC, datetime, timedelta
from operator import itemgetter
from statistics import fmean, multimode

import ibis
import pyarrow as pa
from ibis import _

from feature_engine.windows import Window, Windows

TIME = pa.timestamp("us", tz="UTC")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
PERIODS = (timedelta(hours=12), timedelta(days=30), None)
FUNCTIONS = {
    "count": len,
    "sum": sum,
    "mean": fmean,
    "min": min,
    "max": max,
    "first": itemgetter(0),
    "last": itemgetter(-1),
    "mode": lambda values: min(multimode(values)),
}


WINDOWS = [
    *(Window(None, "count", period) for period in PERIODS),
    *(
        Window("kind" if name == "mode" else "paid", name, period)
        for name in FUNCTIONS
        for period in PERIODS
    ),
    *(Window(name, "mode", PERIODS[1]) for name in ("pieces", "late", "at")),
    Window("kind", "mode", where=_.late, name="kind_late"),
    Window("pieces", "sum", PERIODS[1]),
    Window("kind", "last", PERIODS[1]),
    Window("late", "mean", PERIODS[1]),
    Window("paid", "sum", PERIODS[1], where=_.late, name="paid_late"),
    Window(_.paid * _.pieces, "sum", name="worth"),
]


FEATURES = Windows("id", "at", WINDOWS)
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "at": TIME,
        "paid": pa.float64(),
        "pieces": pa.int64(),
        "kind": pa.string(),
        "late": pa.bool_(),
        "ingested_at": TIME,
    }
)


def as_table(raw_rows):
    rows_with_arrival = [row | {"ingested_at": row["at"]} for row in raw_rows]
    return ibis.memtable(pa.Table.from_pylist(rows_with_arrival, schema=SCHEMA))

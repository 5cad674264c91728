"""What an event costs of an entity with a long history: processor seconds of `gyre consume`.

    python -m benchmarks.busy_entity [rows of the entity, 105,000 if not given]

An airport has rows of two years, and 100 other airports a few. Each event is a new row of the airport.
The event consumer's step is called as `gyre consume` calls it, in a process of its own, on a Redis in
memory. Windows with a period are compared with an airport of 1,000 rows; windows without have a limit
of their own. Seconds are processor time of all threads for an event, the median of ten.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.support import measure
from benchmarks.support.measure import ROUNDS, child, median, promised
from core.settings import load_settings

FEW_ROWS = 1_000
EVENTS = 10
NAME = "arrivals"
MODULE = """
from datetime import timedelta

import pyarrow as pa
from feast import Entity, ValueType

from gyre import Dataset, Window, Windows, feature_view

SCHEMA = {
    "flight": pa.int64(),
    "airport": pa.string(),
    "landed_at": pa.timestamp("us", tz="UTC"),
    "delay": pa.float64(),
    "carrier": pa.string(),
}
WINDOWS = [
    Window(None, "count", PERIOD),
    Window("delay", "mean", PERIOD),
    Window("delay", "max", PERIOD),
    Window("carrier", "last", PERIOD),
]
ARRIVALS = Dataset(
    name="arrivals",
    schema=pa.schema(SCHEMA),
    key=("flight",),
    event_time="landed_at",
    entity="airport",
    look_back=timedelta(days=2),
    silence=timedelta(hours=6),
    views={"arrivals": Windows("airport", "landed_at", WINDOWS)},
    labels={},
)
airport = Entity(name="airport", join_keys=["airport"], value_type=ValueType.STRING)
arrivals_view = feature_view(ARRIVALS, "arrivals", [airport])
"""
SUITE = {
    "name": NAME,
    "expectations": [
        {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": "flight"},
        },
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "delay", "min_value": -600, "max_value": 6000},
        },
    ],
}


def load_arrivals(folder: str, period: str) -> Any:
    """Import a dataset of arrivals whose windows have a period, or none; its suite lies beside it."""
    from feature_repo import rules  # noqa: PLC0415  (heavy)

    name = f"feature_repo.datasets.{NAME}"
    file = Path(folder) / f"{NAME}.py"
    file.write_text(MODULE.replace("PERIOD", period))
    (Path(folder) / f"{NAME}.json").write_text(json.dumps(SUITE))
    rules.EXPECTATIONS = Path(folder)
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module.ARRIVALS


def arrivals(dataset: Any, count: int, now: datetime) -> Any:
    """Return rows of two years of one busy airport, and ten of each of a hundred others."""
    import pyarrow as pa  # noqa: PLC0415  (heavy)

    others = 1_000
    total = count + others
    airports = ["BUSY"] * count + [f"A{number % 100}" for number in range(others)]
    step = timedelta(days=730) / count
    times = [now - timedelta(minutes=1) - step * number for number in range(count)]
    times += [now - timedelta(hours=1 + number) for number in range(others)]
    columns = {
        "flight": list(range(total)),
        "airport": airports,
        "landed_at": times,
        "delay": [float(number % 97) for number in range(total)],
        "carrier": [f"C{number % 20}" for number in range(total)],
        "ingested_at": times,
    }
    schema = dataset.schema.append(pa.field("ingested_at", pa.timestamp("us", "UTC")))
    return pa.table(columns, schema=schema)


def process_events(folder: str, port: str, period: str, count: str) -> dict[str, float]:
    """Measure one round."""
    from feature_engine.ingest.consumer import EventConsumer  # noqa: PLC0415  (heavy)
    from feature_engine.offline.raw import raw_table  # noqa: PLC0415
    from feature_engine.offline.views import write_views  # noqa: PLC0415
    from feature_engine.online.refresh import refresh_online  # noqa: PLC0415
    from feature_engine.online.values import OnlineValues  # noqa: PLC0415
    from feature_repo.published.store import publish_beside  # noqa: PLC0415

    redis = Redis(port=int(port))
    redis.flushall()  # of the round before
    home = tempfile.mkdtemp(dir=folder)
    settings = load_settings(home=home, redis_port=port, redis_url=None)
    dataset = load_arrivals(home, period)
    publish_beside(settings, dataset)
    raw = raw_table(settings, dataset)
    now = datetime.now(UTC)
    raw.merge(arrivals(dataset, int(count), now), dataset.key, ["flight"])
    write_views(settings, dataset, raw)
    with closing(OnlineValues(settings, dataset, raw)) as online:
        refresh_online(online, clock=lambda: datetime.now(UTC))
    processor_seconds = []
    consumer = EventConsumer(settings, dataset, "bench")
    with closing(consumer.stream):
        consumer.stream.declare()
        for number in range(EVENTS + 2):
            event = {
                "flight": 10_000_000 + number,
                "airport": "BUSY",
                "landed_at": datetime.now(UTC).isoformat(),
                "delay": 5.0,
                "carrier": "C1",
            }
            redis.xadd(f"gyre:events:{NAME}", {"events": json.dumps([event])})
            start = time.process_time()
            assert consumer.step()
            processor_seconds.append(time.process_time() - start)
    assert redis.xlen(f"gyre:events:{NAME}") == 0
    return {"seconds": statistics.median(processor_seconds[2:])}


def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as folder:
        measure.title(f"an event of an entity with {count:,} rows")
        with measure.redis_in_memory(Path(folder)) as port:
            cases = {
                "few": ("timedelta(days=30)", FEW_ROWS),
                "period": ("timedelta(days=30)", count),
                "ever": ("None", count),
            }
            rounds = []
            for _ in range(ROUNDS):
                values = {}
                for case, arguments in cases.items():
                    values[case] = child(
                        "busy_entity", "events", folder, port, *arguments
                    )
                rounds.append(values)
        few = median(rounds, "few")
        print(f"{FEW_ROWS:,} rows, windows with a period {few:33.2f} s")
        print(
            f"{count:,} rows, windows with a period {median(rounds, 'period'):31.2f} s"
        )
        ratio = measure.ratio(rounds, "period", "few")
        promised(f"windows with a period: {count:,} rows to 1,000", ratio, 2, "")
        ever = median(rounds, "ever")
        promised("windows without a period: processor an event", ever, 0.5, "s")


if __name__ == "__main__":
    measure.start(main, 105_000, {"events": process_events})

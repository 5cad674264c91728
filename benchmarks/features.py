"""Training frames and materialisation through Feast, each beside what it stands on.

    python -m benchmarks.features [rows, a million if not given]

Frame: the shipped service `customer_churn_v1`, ten features, two of them on demand, joined to a
pandas frame of so many rows, at 6 and at 50 feature rows per customer. Beside it: DuckDB's ASOF
join and the same arithmetic in one statement. Materialise: the newest row of as many customers,
eleven fields each, from parquet into an empty Redis. Beside it: as many fields by plain HSET,
encoded before the clock starts. Three rounds, interleaved, each a process of its own; Feast's own
stores and engine run once. Peak memory is with imports and entity frame.

In our favour, a frame is timed on its second call (the plain join's too) and the parquet file is in
the page cache. Against us, the plain join does not order equal times by created time, imports no
Feast, and does its arithmetic in C, not in the function that serving runs too.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from redis import Redis

from benchmarks.support import measure
from benchmarks.support.measure import child, median, promised, ratio, rounds_of
from core.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd

EVENTS = (6, 50)
SERVICE, VIEW = "customer_churn_v1", "customer_features"
ROWS = "rows.parquet"
"""What the peers read: Feast's own DuckDB store would download an extension for a Delta table."""
BEGIN, YEAR = 1_750_000_000_000_000, 31_536_000_000_000
TIME = pa.timestamp("us", tz="UTC")
PLAIN_JOIN = """
    SELECT e.*, f.* EXCLUDE (customer_id, event_timestamp, created),
      (as_of - last_order_us) // 86400000000 AS days_since_last_order,
      (as_of - first_order_us) // 86400000000 AS customer_tenure_days
    FROM frame e ASOF LEFT JOIN '{path}' f
    ON e.customer_id = f.customer_id AND e.event_timestamp >= f.event_timestamp"""


def write_rows(home: Path, customers: int, events: int) -> None:
    """Feature rows as ingest writes them, values drawn at random."""
    rng, n = np.random.default_rng(1), customers * events
    at = BEGIN + rng.integers(0, YEAR, n)
    columns = {
        "customer_id": np.repeat(np.arange(customers), events),
        "event_timestamp": pa.array(at, TIME),
        "created": pa.array(at, TIME),
        **{f"total_orders_{days}d": rng.integers(0, 40, n) for days in (30, 90)},
        **{f"total_spend_{days}d": rng.random(n) * 1000 for days in (30, 90)},
        "lifetime_orders": rng.integers(1, 90, n),
        "lifetime_value": rng.random(n) * 9000,
        "avg_order_value": rng.random(n) * 100,
        "customer_segment": rng.choice(["new", "repeat", "loyal"], n),
        "last_order_us": at,
        "first_order_us": at - rng.integers(0, YEAR, n),
    }
    pq.write_table(pa.table(columns), home / ROWS)


def write_view(settings: Settings) -> None:
    """Make a view's table of the rows, beside a raw table without rows."""
    from feature_engine.engines.engine import engine_connection, write_files  # noqa: PLC0415
    from feature_engine.offline.raw import raw_table  # noqa: PLC0415
    from feature_engine.offline.views import view_table  # noqa: PLC0415
    from feature_repo.datasets.orders import ORDERS  # noqa: PLC0415  (not in what is measured)

    raw = raw_table(settings, ORDERS)
    raw.merge(raw.schema.empty_table(), ORDERS.key, ORDERS.schema.names)
    view = view_table(settings, VIEW)
    folder = Path(tempfile.mkdtemp(dir=settings.home))
    with engine_connection(settings, folder / "spill") as connection:
        rows = connection.read_parquet(settings.home / ROWS)
        files = write_files(connection, rows, view, None, folder / "rows")
        columns = rows.schema().to_pyarrow()
    notes = {"definition": 1, "raw": raw.version}
    view.commit(files, columns, None, notes)


def entity_frame(rows: int, customers: int) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    at = BEGIN + rng.integers(0, YEAR, rows)
    ids = rng.integers(0, customers, rows)
    columns = {"customer_id": ids, "event_timestamp": pa.array(at, TIME), "as_of": at}
    return pa.table(columns).to_pandas()


def open_feast(settings: Settings, *, stock: bool) -> Any:
    """Feast on the shipped definitions and `feature_store.yaml`, or on its own offline store."""
    import feast  # noqa: PLC0415  (the plain join's process needs none)
    from feast.data_format import ParquetFormat  # noqa: PLC0415
    from feast.infra.offline_stores.file_source import FileOptions  # noqa: PLC0415
    from feast.repo_config import RepoConfig  # noqa: PLC0415

    from feature_repo.datasets import orders  # noqa: PLC0415
    from feature_repo.published.config import feast_config  # noqa: PLC0415
    from feature_repo.published.store import open_store, publish_beside  # noqa: PLC0415

    if not stock:
        publish_beside(settings, orders.ORDERS)
        return open_store(settings, 60)
    registry = {"registry_type": "file", "path": str(settings.home / "stock.db")}
    config = feast_config(settings, 60) | {
        "offline_store": {"type": "duckdb"},
        "registry": registry,
    }
    views = [orders.customer_features_view, orders.customer_recency]
    views[0].batch_source.file_options = FileOptions(
        uri=str(settings.home / ROWS),
        file_format=ParquetFormat(),
        s3_endpoint_override="",
    )
    store = feast.FeatureStore(config=RepoConfig(**config))
    store.apply([orders.customer, *views, orders.customer_churn_v1])
    return store


def time_frame(peer: str, count: str, events: str) -> dict[str, float]:
    settings, rows = load_settings(), int(count)
    entities = entity_frame(rows, rows // int(events))
    if peer == "plain":
        connection = duckdb.connect()
        connection.execute("SET asof_loop_join_threshold = 0").register(
            "frame", entities
        )
        sql = PLAIN_JOIN.format(path=settings.home / ROWS)

        def join() -> pa.Table:
            return connection.sql(sql).to_arrow_table()

    else:
        store = open_feast(settings, stock=peer == "stock")
        service = store.get_feature_service(SERVICE)

        def join() -> pa.Table:
            return store.get_historical_features(entities.copy(), service).to_arrow()

    join()
    began = time.perf_counter()
    assert len(join()) == rows
    return {"seconds": time.perf_counter() - began}


def time_materialise(peer: str, rows: str, _events: str) -> dict[str, float]:
    settings = load_settings()
    with Redis(port=settings.redis_port) as redis:
        redis.flushall()
        if peer == "plain":
            seconds = time_plain_writes(settings, redis)
        else:
            store = open_feast(settings, stock=peer == "stock")
            seconds = time_fill(settings, store, stock=peer == "stock")
        assert redis.dbsize() == int(rows) + (peer == "gyre")
    return {"seconds": seconds}


def time_fill(settings: Settings, store: Any, *, stock: bool) -> float:
    from feature_engine.offline.raw import raw_table  # noqa: PLC0415
    from feature_engine.online.refresh import refresh_online  # noqa: PLC0415
    from feature_engine.online.values import OnlineValues  # noqa: PLC0415
    from feature_repo.datasets.orders import ORDERS  # noqa: PLC0415  (heavy)

    end = datetime(2100, 1, 1, tzinfo=UTC)
    began = time.perf_counter()
    if stock:
        store.materialize(datetime(2000, 1, 1, tzinfo=UTC), end)
    else:
        raw = raw_table(settings, ORDERS)
        with closing(OnlineValues(settings, ORDERS, raw)) as online:
            refresh_online(online, clock=lambda: end)
    return time.perf_counter() - began


def time_plain_writes(settings: Settings, redis: Redis) -> float:
    table = pq.read_table(settings.home / ROWS).drop_columns(["created"])
    seconds = 0.0
    for batch in table.to_batches(10_000):
        pipeline = redis.pipeline(transaction=False)
        for row in batch.to_pylist():
            key = str(row.pop("customer_id"))
            pipeline.hset(
                key, mapping={name: str(value)[:9] for name, value in row.items()}
            )
        began = time.perf_counter()
        pipeline.execute()
        seconds += time.perf_counter() - began
    return seconds


PEERS = {"frame": time_frame, "materialise": time_materialise}


def compare(what: str, home: Path, port: int, rows: int, events: int = 1) -> float:
    """Write feature rows, print the figures of each peer; return our seconds to the plain ones."""

    def measured(peer: str) -> dict[str, float]:
        here = {
            "GYRE_HOME": str(home),
            "GYRE_REDIS_PORT": str(port),
            "GYRE_REDIS_URL": f"redis://127.0.0.1:{port}",
        }
        return child("features", what, peer, rows, events, **here)

    measure.title(f"{what} of {rows:,} rows, {events} feature rows a key")
    write_rows(home, rows // events, events)
    write_view(load_settings(home=home))
    rounds = rounds_of(("gyre", "plain"), measured)
    times = measured("stock")["seconds"] / median(rounds, "plain")
    print(f"stock     {times:8.2f} times plain")
    return ratio(rounds, "gyre", "plain")


def main(rows: int) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        measure.redis_in_memory(Path(name)) as port,
    ):
        for events in EVENTS:
            times = compare("frame", Path(name), port, rows, events)
            promised(f"frame at {events} rows a key to a plain join", times, 3, "x")
        times = compare("materialise", Path(name), port, rows)
        promised("materialise to plain HSET", times, 2, "x")


if __name__ == "__main__":
    measure.start(main, 1_000_000, PEERS)

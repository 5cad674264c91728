"""Training frames and materialisation through Feast, each beside what it stands on.

    python -m benchmarks.features [rows, a million if not given]

Frame: the shipped service `customer_churn_v1`, ten features, two of them on demand, joined to a
pandas frame of so many rows, at 6 and at 50 feature rows per customer. Beside it: DuckDB's ASOF
join and the same arithmetic in one statement, and Feast's own DuckDB store.
Materialise: the newest row of as many customers, eleven fields each, from parquet into an empty
Redis. Beside it the limits: the same bytes by a script that only writes and by plain HSET, encoded
before the clock starts; and Feast's own engine and store, for a tenth of the customers.

Every figure is the median of three rounds, interleaved, each measurement in a process of its own;
stock Feast runs once. Peak memory is that process's, imports and entity frame included.

What is unfair: in our favour, a frame is timed on its second call (the plain join's too) and the
parquet file is in the page cache. Against us, the plain join does not order equal times by created
time, imports no Feast, and does its arithmetic in C, not in the function that serving runs too; the
limits of materialising read, encode and check nothing. Plain HSET waits for redis-py's packing of
its many commands: Redis's own time per row stands beside each.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from redis import Redis

from benchmarks.child import child, medians, peak_mb, times
from benchmarks.redis_server import start_redis
from stack.settings import PROJECT, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

ROUNDS, EVENTS = 3, (6, 50)
SERVICE, VIEW = "customer_churn_v1", "customer_features"
BEGIN, YEAR, DAY = 1_750_000_000_000_000, 31_536_000_000_000, 86_400_000_000
TIME = pa.timestamp("us", tz="UTC")
STOCK = {"offline_store": "duckdb", "batch_engine": "local", "online_store": "redis"}
PLAIN_JOIN = """
    SELECT e.*, f.* EXCLUDE (customer_id, event_timestamp, created),
      (as_of - last_order_us) // 86400000000 AS days_since_last_order,
      (as_of - first_order_us) // 86400000000 AS customer_tenure_days
    FROM frame e ASOF LEFT JOIN '{path}' f
    ON e.customer_id = f.customer_id AND e.event_timestamp >= f.event_timestamp"""
PLAIN_WRITE = """
local width, row = tonumber(ARGV[1]), {}
for n = 1, width do row[2 * n - 1] = ARGV[1 + n] end
for i, key in ipairs(KEYS) do
  for n = 1, width do row[2 * n] = ARGV[1 + i * width + n] end
  redis.call('HSET', key, unpack(row))
end
return #KEYS"""


def write_rows(path: Path, customers: int, events: int) -> None:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def frame(rows: int, customers: int) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    at = BEGIN + rng.integers(0, YEAR, rows)
    ids = rng.integers(0, customers, rows)
    columns = {"customer_id": ids, "event_timestamp": pa.array(at, TIME), "as_of": at}
    return pa.table(columns).to_pandas()


def open_feast(settings: Settings, *, stock: bool) -> Any:
    """Feast on the shipped definitions and `feature_store.yaml`, or on its own stores."""
    import feast  # noqa: PLC0415  (the plain join's process needs none)
    import yaml  # noqa: PLC0415
    from feast.repo_config import RepoConfig  # noqa: PLC0415

    from feature_repo.datasets import orders  # noqa: PLC0415

    config = yaml.safe_load((PROJECT / "feature_repo" / "feature_store.yaml").read_text())
    config["registry"]["path"] = str(settings.home / "registry.db")
    config["online_store"]["connection_string"] = settings.feast_connection(60)
    for part in config.keys() & STOCK.keys() if stock else ():
        config[part]["type"] = STOCK[part]
    store = feast.FeatureStore(config=RepoConfig(**config))
    store.apply([orders.customer, orders.customer_features_view, orders.customer_recency,
                 orders.customer_churn_v1])  # fmt: skip
    return store


def time_frame(peer: str, rows: int, events: int) -> float:
    settings, entities = load_settings(), frame(rows, rows // events)
    if peer == "plain":
        import duckdb  # noqa: PLC0415

        connection = duckdb.connect()
        connection.execute("SET asof_loop_join_threshold = 0").register("frame", entities)
        path = settings.features / f"{VIEW}.parquet"

        def join() -> pa.Table:
            return connection.sql(PLAIN_JOIN.format(path=path)).to_arrow_table()
    else:
        store = open_feast(settings, stock=peer == "stock")
        service = store.get_feature_service(SERVICE)

        def join() -> pa.Table:
            return store.get_historical_features(entities.copy(), service).to_arrow()

    join()
    began = time.perf_counter()
    found = join()
    seconds = time.perf_counter() - began
    if len(found) != rows:
        raise SystemExit(f"{peer}: {len(found)} rows of {rows}")
    return seconds


def time_materialise(peer: str) -> float:
    store = open_feast(load_settings(), stock=peer == "stock")
    if peer in {"gyre", "stock"}:
        began = time.perf_counter()
        store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
        return time.perf_counter() - began
    return sum(map(_sender(store, peer == "script"), _bytes(store)))


def _bytes(store: Any) -> Any:
    from feature_repo.extensions.engine import encoded  # noqa: PLC0415

    view = store.get_feature_view(VIEW)
    return encoded(view, pq.read_table(view.batch_source.path), store.project)


def _sender(store: Any, script: bool) -> Callable[[tuple[list[bytes], list[bytes]]], float]:  # noqa: FBT001
    from feature_repo.extensions.online import ROWS_PER_CALL, _fields  # noqa: PLC0415
    from feature_repo.store import online_client  # noqa: PLC0415

    view, redis = store.get_feature_view(VIEW), online_client(store)
    fields = _fields(store.config, view, [feature.name for feature in view.features])
    width, sha = len(fields), redis.script_load(PLAIN_WRITE)

    def send(part: tuple[list[bytes], list[bytes]]) -> float:
        (keys, cells), began = part, time.perf_counter()
        for trip in range(0, len(keys), 100 * ROWS_PER_CALL):
            with redis.pipeline(transaction=False) as pipe:
                end = min(trip + 100 * ROWS_PER_CALL, len(keys))
                for row in range(trip, end, ROWS_PER_CALL if script else 1):
                    if script:
                        names = keys[row : row + ROWS_PER_CALL]
                        values = cells[row * width : (row + ROWS_PER_CALL) * width]
                        pipe.evalsha(sha, len(names), *names, width, *fields, *values)
                    else:
                        pairs: list[bytes] = [b""] * (2 * width)
                        pairs[::2], pairs[1::2] = fields, cells[row * width : (row + 1) * width]
                        pipe.execute_command("HSET", keys[row], *pairs)
                pipe.execute()
        return time.perf_counter() - began

    return send


def measured(arguments: list[str]) -> dict[str, float]:
    with redirect_stdout(sys.stderr):
        kind, peer, *numbers = arguments
        if kind == "frame":
            seconds = time_frame(peer, *map(int, numbers))
        else:
            seconds = time_materialise(peer)
    return {"seconds": seconds, "mb": peak_mb()}


def apart(home: Path, port: int, *what: object) -> dict[str, float]:
    """Measure it on the installation at `home`, whose Redis is at `port`."""
    here = {"GYRE_HOME": str(home), "GYRE_REDIS_PORT": str(port), "GYRE_REDIS_URL": ""}
    return child("benchmarks.features", *what, **here)


def frames(home: Path, rows: int) -> None:
    print(f"{'training frame':26}{'seconds':>9}{'times plain':>13}{'peak MB':>9}")
    for events in EVENTS:
        write_rows(home / "features" / f"{VIEW}.parquet", rows // events, events)
        rounds = [
            {p: apart(home, 1, "frame", p, rows, events) for p in ("plain", "gyre")}
            for _ in range(ROUNDS)
        ]
        rounds[0]["stock"] = apart(home, 1, "frame", "stock", rows, events)
        for peer in ("plain", "gyre", "stock"):
            seconds, mb = medians(rounds, peer, "seconds", "mb")
            ratio = times(rounds, peer, "plain", "seconds")
            print(f"{peer:8}{events:3} rows per key{seconds:11.2f}{ratio:13.1f}{mb:9.0f}")


def entities_online(redis: Redis, home: Path, peer: str, count: int) -> dict[str, float]:
    def busy() -> float:
        cpu = redis.info("cpu")
        return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])

    redis.flushall()
    before, port = busy(), redis.get_connection_kwargs()["port"]
    found = apart(home, port, "materialise", peer)
    if redis.dbsize() != count:
        raise SystemExit(f"{peer}: {redis.dbsize()} hashes of {count}")
    return found | {"redis": (busy() - before) / count * 1e6, "rate": count / found["seconds"]}


def materialise(home: Path, rows: int) -> None:
    print(f"\n{'materialise':12}{'entities/s':>12}{'to script':>11}{'Redis us':>10}{'peak MB':>9}")
    tenth = home / "tenth"
    write_rows(home / "features" / f"{VIEW}.parquet", rows, 1)
    write_rows(tenth / "features" / f"{VIEW}.parquet", rows // 10, 1)
    with ExitStack() as opened:
        redis = Redis(port=start_redis(opened, home))
        rounds = [
            {p: entities_online(redis, home, p, rows) for p in ("gyre", "script", "HSET")}
            for _ in range(ROUNDS)
        ]
        rounds[0]["stock"] = entities_online(redis, tenth, "stock", rows // 10)
    for peer in ("gyre", "script", "HSET", "stock"):
        mb, redis_us, rate = medians(rounds, peer, "mb", "redis", "rate")
        ratio = times(rounds, peer, "script", "rate")
        print(f"{peer:12}{rate:12,.0f}{ratio:11.2f}{redis_us:10.1f}{mb:9.0f}")


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name:
        print(f"{rows:,} rows, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        frames(Path(name), rows)
        materialise(Path(name), rows)
        print(f"load {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores")


if __name__ == "__main__":
    if sys.argv[2:]:
        print(json.dumps(measured(sys.argv[1:])))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)

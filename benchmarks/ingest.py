"""What an ingest costs on a long history, and the features of all of it beside plain SQL.

    python -m benchmarks.ingest [orders of history, ten million if not given]

History: the shipped orders as often as it takes, each time of customers of their own, at random
seconds of their days. Features: `write_views` with no view there, beside the same windows written
by hand for DuckDB and copied to one parquet file. Ingest: 10,000 orders, nine of ten of known
customers, dated in the hour since the last ingest, from a parquet file that holds the whole history
too; validated, merged, features and Redis brought up to date. `full` reads all of the source. The
history is landed by a merge without validation, and Redis starts with its newest day only.

Every figure is the median of three rounds, interleaved, each measurement in a process of its own.
Peak memory is that process's, imports included. `ingest` begins with Feast and Great Expectations
imported; a process that does it once takes as long for these as the line `imports` says.

What is unfair: files are in the page cache. In our favour, nothing else is in Redis, and the SQL by
hand has sliding frames, as one would write it, where the features are running sums. Against us, it
uses functions of DuckDB's own for times and writes one file, not periods.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from benchmarks.child import child, medians, peak_mb, times
from benchmarks.redis_server import start_redis
from stack.settings import PROJECT, Settings, load_settings

ROUNDS, NEW, SHIPPED = 3, 10_000, PROJECT / "data" / "cdnow_orders.parquet"
AS_OF = datetime(2026, 11, 20, 12, tzinfo=UTC)
HISTORY = """
COPY (
  WITH shipped AS (FROM '{shipped}'), top AS (
    SELECT max(order_id) AS orders, max(customer_id) AS customers, max(order_ts) AS newest
    FROM shipped)
  SELECT order_id + copy * orders AS order_id, customer_id + copy * customers AS customer_id,
    order_ts + (TIMESTAMPTZ '2026-11-19 00:00:00Z' - newest)
      + to_seconds(hash(order_id, copy) % 86400) AS order_ts, number_of_cds, dollar_value
  FROM range({copies}) AS copies(copy), shipped, top
  ORDER BY copy, order_id LIMIT {rows}
) TO '{to}'"""
# The newest orders again, with keys of their own, in the hour before AS_OF.
NEWER = """
COPY (
  SELECT order_id + {rows} AS order_id,
    customer_id + CASE WHEN order_id % 10 = 0 THEN {rows} ELSE 0 END AS customer_id,
    TIMESTAMPTZ '2026-11-20 11:00:00Z' + to_seconds(hash(order_id) % 3600) AS order_ts,
    number_of_cds, dollar_value
  FROM (FROM '{history}' ORDER BY hash(order_id) LIMIT {new})
) TO '{to}'"""
BY_HAND = """
COPY (
  WITH arrivals AS (
    SELECT customer_id, ingested_at AS created, epoch_us(order_ts) AS us, epoch_us(order_ts) AS t,
      1 AS n, dollar_value::DECIMAL(18, 6) AS amount
    FROM read_parquet({files})),
  points AS (
    FROM arrivals
    UNION ALL SELECT customer_id, created, us, t + 30 * 86400000000, 0, 0 FROM arrivals
    UNION ALL SELECT customer_id, created, us, t + 90 * 86400000000, 0, 0 FROM arrivals),
  found AS (
    SELECT customer_id, make_timestamptz(t) AS event_timestamp, max(created) OVER ever AS created,
      (sum(n) OVER d30)::BIGINT AS total_orders_30d, (sum(n) OVER d90)::BIGINT AS total_orders_90d,
      (sum(amount) OVER d30)::DOUBLE AS total_spend_30d,
      (sum(amount) OVER d90)::DOUBLE AS total_spend_90d,
      (sum(n) OVER ever)::BIGINT AS lifetime_orders,
      (sum(amount) OVER ever)::DOUBLE AS lifetime_value,
      max(us) OVER ever AS last_order_us, min(us) OVER ever AS first_order_us
    FROM points
    WINDOW ever AS (PARTITION BY customer_id ORDER BY t RANGE UNBOUNDED PRECEDING),
      d30 AS (PARTITION BY customer_id ORDER BY t
        RANGE BETWEEN 2591999999999 PRECEDING AND CURRENT ROW),
      d90 AS (PARTITION BY customer_id ORDER BY t
        RANGE BETWEEN 7775999999999 PRECEDING AND CURRENT ROW)
    QUALIFY lead(t) OVER ever IS DISTINCT FROM t)
  SELECT *, lifetime_value / lifetime_orders AS avg_order_value,
    CASE WHEN lifetime_orders = 1 THEN 'new' WHEN lifetime_orders < 5 THEN 'repeat' ELSE 'loyal' END
      AS customer_segment
  FROM found
) TO '{to}'"""


def at_home(home: Path, **more: Any) -> Settings:
    return load_settings(home=home, sources={"orders": f"{home}/source/*.parquet"}, **more)


def prepare(home: Path, port: int, rows: int) -> None:
    """A table of `rows` orders, its features and the newest day of them online."""
    from feature_repo import features, ingest, store  # noqa: PLC0415  (heavy)
    from tests.conftest import feast_apply  # noqa: PLC0415  (not in what is measured)

    settings = at_home(home, redis_port=port, redis_url=None)
    (home / "source").mkdir(parents=True)
    history, new = home / "source" / "history.parquet", home / "new.parquet"
    copies = rows // pq.read_metadata(SHIPPED).num_rows + 1
    with duckdb.connect(config={"memory_limit": "3GB"}) as connection:
        connection.execute(HISTORY.format(shipped=SHIPPED, copies=copies, rows=rows, to=history))
        connection.execute(NEWER.format(history=history, rows=10 * rows, new=NEW, to=new))
    dataset = ingest.load_dataset("orders")
    raw = ingest.raw_table(settings, dataset)
    landed = pq.read_table(history).cast(dataset.schema)
    raw.merge(landed.append_column("ingested_at", landed["order_ts"]), dataset.key, ("order_id",))
    features.write_views(settings, dataset, raw)
    feast_apply(settings)
    feast = store.open_store(settings, 60)
    feast.materialize(AS_OF - timedelta(days=1), AS_OF - timedelta(hours=1))
    for view in dataset.views:
        store.online_client(feast).set(store.mark(feast, view), "")
    features.note_online(settings, dataset)


def measured(what: str, home: Path, port: int) -> dict[str, float]:
    settings, imports = at_home(home, redis_port=port, redis_url=None), 0.0
    with redirect_stdout(sys.stderr):
        if what == "by hand":
            from stack.storage import Table  # noqa: PLC0415

            files = Table(settings.data / "raw" / "orders", None).files()
            sql = BY_HAND.format(files=files, to=home / "by_hand.parquet")
            config = {"memory_limit": "4GB", "temp_directory": str(home)}
            with duckdb.connect(config=config | {"preserve_insertion_order": False}) as connection:
                began = time.perf_counter()
                connection.execute(sql)
            seconds = time.perf_counter() - began
        else:
            began = time.perf_counter()

            from feature_repo import features, ingest  # noqa: PLC0415  (heavy)

            imports = time.perf_counter() - began
            dataset = ingest.load_dataset("orders")
            began = time.perf_counter()
            if what == "features":
                shutil.rmtree(settings.features)
                features.write_views(settings, dataset, ingest.raw_table(settings, dataset))
            else:
                found = ingest.ingest(settings, "orders", AS_OF, full=what == "full")
                if found.inserted != NEW:
                    raise SystemExit(found.summary())
            seconds = time.perf_counter() - began
    return {"seconds": seconds, "imports": imports, "mb": peak_mb()}


def apart(what: str, home: Path, port: int) -> dict[str, float]:
    """One measurement in a process of its own, on a copy of the prepared home in its place."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(pristine(home), home, copy_function=os.link, symlinks=True)
    registry = home / "feast" / "registry.db"  # written in place: no link to the prepared one
    registry.unlink()
    shutil.copyfile(pristine(home) / "feast" / "registry.db", registry)
    if what in {"ingest", "full"}:
        (home / "new.parquet").rename(home / "source" / "new.parquet")
    return child("benchmarks.ingest", what, home, port)


def pristine(home: Path) -> Path:
    return home.with_name("prepared")


def main(rows: int) -> None:
    peers = ("by hand", "features", "ingest", "full")
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name, ExitStack() as opened:
        home, port = Path(name) / "home", start_redis(opened, Path(name))
        print(
            f"{rows:,} orders, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
        )
        prepare(home, port, rows)
        home.rename(pristine(home))  # Feast's registry names files by their whole path
        rounds = [{peer: apart(peer, home, port) for peer in peers} for _ in range(ROUNDS)]
        print(f"{'':10}{'seconds':>9}{'times by hand':>15}{'peak MB':>9}")
        for peer in peers:
            seconds, mb = medians(rounds, peer, "seconds", "mb")
            ratio = times(rounds, peer, "by hand", "seconds")
            print(f"{peer:10}{seconds:9.1f}{ratio:15.2f}{mb:9.0f}")
        print(f"{'imports':10}{medians(rounds, 'ingest', 'imports')[0]:9.1f}")
        print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    if sys.argv[2:]:
        kind, folder, redis_port = sys.argv[1:]
        print(json.dumps(measured(kind, Path(folder), int(redis_port))))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 10_000_000)

"""What an ingest costs on a long history, and the features of all of it beside plain SQL.

    python -m benchmarks.ingest [orders of history, ten million if not given]

History: the shipped orders as often as it takes, each time of customers of their own, at random
seconds of their days; landed by a merge without validation, all of it in Redis. Ingest: 10,000
orders, nine of ten of known customers, dated in the hour since the last ingest, from a file beside
the history's; validated, merged, features and Redis brought up to date. Features: `write_views`
with no view there, beside the same windows in SQL by hand, copied to one parquet file: with sliding
frames, as one would write it, where the features are running sums. Three rounds, each measurement
in a process of its own; peak memory is with imports, seconds are without. First landing: pull,
validation and raw table of all of the history, and of a tenth of it, one round each.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from benchmarks.support import measure
from benchmarks.support.measure import ROUNDS, child, median, promised, ratio, rounds_of
from core.project import PROJECT
from core.settings import Settings, load_settings

NEW, SHIPPED = 10_000, PROJECT / "data" / "cdnow_orders.parquet"
SHIPPED_ROWS = pq.read_metadata(SHIPPED).num_rows
AS_OF, HOUR = datetime(2026, 11, 20, 12, tzinfo=UTC), timedelta(hours=1)
HISTORY = """
COPY (
  WITH top AS (SELECT max(order_id) AS orders, max(customer_id) AS customers,
    max(order_ts) AS newest FROM '{shipped}')
  SELECT order_id + copy * orders AS order_id, customer_id + copy * customers AS customer_id,
    order_ts + (TIMESTAMPTZ '2026-11-19 00:00:00Z' - newest)
      + to_seconds(hash(order_id, copy) % 86400) AS order_ts, number_of_cds, dollar_value
  FROM range({first_copy}, {end_copy}) AS copies(copy), '{shipped}', top
  ORDER BY copy, order_id LIMIT {rows}
) TO '{to}'"""
# Some orders again, with keys of their own, in the hour that begins at `begin`.
NEWER = """
COPY (
  SELECT order_id + {rows} AS order_id,
    customer_id + CASE WHEN order_id % 10 = 0 THEN {rows} ELSE 0 END AS customer_id,
    TIMESTAMPTZ '{begin}' + to_seconds(hash(order_id) % 3600) AS order_ts,
    number_of_cds, dollar_value
  FROM (FROM '{history}' ORDER BY hash(order_id, {rows}) LIMIT {new})
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
      d30 AS (PARTITION BY customer_id ORDER BY t RANGE 2591999999999 PRECEDING),
      d90 AS (PARTITION BY customer_id ORDER BY t RANGE 7775999999999 PRECEDING)
    QUALIFY lead(t) OVER ever IS DISTINCT FROM t)
  SELECT *, lifetime_value / lifetime_orders AS avg_order_value,
    CASE WHEN lifetime_orders = 1 THEN 'new' WHEN lifetime_orders < 5 THEN 'repeat' ELSE 'loyal' END
      AS customer_segment
  FROM found
) TO '{to}'"""


def at_home(home: str, port: str) -> Settings:
    sources = {"orders": f"{home}/source/*.parquet"}
    return load_settings(home=home, sources=sources, redis_port=port, redis_url=None)


def write_history(file: Path, rows: int) -> None:
    copies = -(-rows // SHIPPED_ROWS)
    with duckdb.connect(config={"memory_limit": "3GB"}) as connection:
        connection.execute(
            HISTORY.format(
                shipped=SHIPPED, first_copy=0, end_copy=copies, rows=rows, to=file
            )
        )


def land(settings: Settings, file: Path, rows: int) -> None:
    """Write `rows` orders to `file`, into the raw table and its features."""
    from feature_engine.ingest import pipeline  # noqa: PLC0415  (heavy)
    from feature_engine.offline import views  # noqa: PLC0415  (heavy)

    write_history(file, rows)
    dataset = pipeline.load_dataset("orders")
    raw = pipeline.raw_table(settings, dataset)
    orders = pq.read_table(file).cast(dataset.schema)
    raw.merge(
        orders.append_column("ingested_at", orders["order_ts"]),
        dataset.key,
        ("order_id",),
    )
    views.write_views(settings, dataset, raw)


def prepare(home: Path, port: int, rows: int) -> None:
    """A table of `rows` orders, its features, and all of them online."""
    from feature_engine.ingest import pipeline  # noqa: PLC0415  (heavy)
    from feature_engine.offline.raw import raw_table  # noqa: PLC0415  (heavy)
    from feature_engine.online import refresh, values  # noqa: PLC0415  (heavy)
    from tests.conftest import feast_apply  # noqa: PLC0415  (not in what is measured)

    settings = at_home(str(home), str(port))
    (home / "source").mkdir(parents=True)
    history = home / "source" / "history.parquet"
    land(settings, history, rows)
    for number in range(1, ROUNDS + 1):
        begin, new = AS_OF + (number - 1) * HOUR, home / f"new-{number}.parquet"
        sql = NEWER.format(
            history=history, rows=10 * number * rows, new=NEW, begin=begin, to=new
        )
        duckdb.execute(sql)
    dataset = pipeline.load_dataset("orders")
    feast_apply(settings)
    raw = raw_table(settings, dataset)
    with closing(values.OnlineValues(settings, dataset, raw)) as online:
        refresh.refresh_online(online, clock=lambda: AS_OF)


def write_by_hand(home: str, port: str) -> dict[str, float]:
    from core.tables.table import Table  # noqa: PLC0415

    files = Table(at_home(home, port), "raw/orders", None).files()
    sql = BY_HAND.format(files=files, to=f"{home}/by_hand.parquet")
    config = {"memory_limit": "4GB", "temp_directory": home}
    with duckdb.connect(
        config=config | {"preserve_insertion_order": False}
    ) as connection:
        began = time.perf_counter()
        connection.execute(sql)
        return {"seconds": time.perf_counter() - began}


def write_features(home: str, port: str) -> dict[str, float]:
    from feature_engine.ingest import pipeline  # noqa: PLC0415  (heavy)
    from feature_engine.offline import views  # noqa: PLC0415  (heavy)
    from feature_repo.published.config import view_address  # noqa: PLC0415  (heavy)

    settings, dataset = at_home(home, port), pipeline.load_dataset("orders")
    began = time.perf_counter()
    for view in dataset.views:
        shutil.rmtree(view_address(settings, view))
    views.write_views(settings, dataset, pipeline.raw_table(settings, dataset))
    return {"seconds": time.perf_counter() - began}


def ingest_new(home: str, port: str) -> dict[str, float]:
    import great_expectations  # noqa: F401, PLC0415  (validation imports it late)

    from feature_engine.ingest import pipeline  # noqa: PLC0415  (heavy)

    settings = at_home(home, port)
    new = min(settings.home.glob("new-*.parquet"))
    new.rename(settings.home / "source" / new.name)
    as_of = AS_OF + int(new.stem[-1]) * HOUR
    pipeline.load_dataset("orders")  # its module's imports
    began = time.perf_counter()
    result = pipeline.ingest(settings, "orders", as_of)
    assert result.inserted == NEW, result.summary()
    return {"seconds": time.perf_counter() - began}


def land_first(home: str, port: str) -> dict[str, float]:
    """Land all rows of a source, with validation, where there are none yet."""
    from feature_engine.ingest import landing, pipeline, source  # noqa: PLC0415  (heavy)

    settings, dataset = at_home(home, port), pipeline.load_dataset("orders")
    began = time.perf_counter()
    landing.land(settings, dataset, source.pull(settings, dataset, AS_OF), AS_OF)
    return {"seconds": time.perf_counter() - began}


PEERS = {
    "by hand": write_by_hand,
    "features": write_features,
    "ingest": ingest_new,
    "first": land_first,
}


def measure_first_landing(folder: Path, rows: int) -> float:
    """Return the peak memory of a first landing, in MB."""
    source = folder / f"home-{rows}" / "source"
    source.mkdir(parents=True)
    write_history(source / "history.parquet", rows)
    values = child("ingest", "first", source.parent, 1)
    print(f"first landing of {rows:,}: {values['seconds']:.1f} s {values['mb']:.0f} MB")
    return values["mb"]


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name:
        measure.title(f"{rows:,} orders, and an ingest of {NEW:,} more")
        home = Path(name) / "home"
        with measure.redis_in_memory(Path(name)) as port:
            prepare(home, port, rows)
            rounds = rounds_of(
                ["ingest"], lambda peer: child("ingest", peer, home, port)
            )
        promised(f"ingest of {NEW:,}", median(rounds, "ingest"), 8, "s")
        rounds = rounds_of(
            ["by hand", "features"], lambda peer: child("ingest", peer, home, 1)
        )
        promised(
            "features to the SQL by hand",
            ratio(rounds, "features", "by hand"),
            1.5,
            "x",
        )
        promised(
            "peak memory of features", median(rounds, "features", "mb"), 3500, "MB"
        )
        peak_of_tenth = measure_first_landing(Path(name), rows // 10)
        peak = measure_first_landing(Path(name), rows)
        promised(
            "memory of a first landing to a tenth of it", peak / peak_of_tenth, 1.2, "x"
        )


if __name__ == "__main__":
    measure.start(main, 10_000_000, PEERS)

"""What features of many rows take on a cluster of two workers, with all tables on S3, by Spark.

    python -m benchmarks.cluster [rows …, one and five million if not given]

As root, after `make spark`, and behind `unshare --net --mount --pid --fork --kill-child
--mount-proc`. The hosts and S3 are those of `make cluster`, all on this machine. Orders are those
of benchmarks/scale.py; page views are made up, for the dataset of docs/page-views.md. `write_views`
runs with no view there: by Spark with the tables on S3, and by DuckDB with the same rows on a disk.
Both are compared row by row, with all values.

Seconds are the driver's: without its imports, with the start of its session. Those of the processor
are of all hosts and of S3, imports included. Memory is the driver's peak with imports: of Python and
of the JVM (VmHWM), and of all its processes at one time (PSS).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import psutil
import pyarrow as pa
import pytest

from benchmarks.scale import frame_values, land_orders, view_sizes
from benchmarks.support.measure import print_peer, promised
from benchmarks.support.watch import LIMIT_MB, watched
from benchmarks.window_ends import load_page_views
from core.settings import Settings, load_settings
from tests.cluster.conftest import HOST, running_cluster

if TYPE_CHECKING:
    from feature_repo.definition import Dataset

ENGINES = ["spark", "duckdb"]
SIZES = [1_000_000, 5_000_000]
ROWS_AT_ONCE = 1_000_000
DEFAULTS = f"""\
spark.driver.host {HOST}
spark.executor.cores 1
spark.executor.memory 1g
spark.cores.max 2
"""
"""What a user has in `spark-defaults.conf`."""
# Visits of eight page views, about a minute apart, some at one moment.
PAGE_VIEWS = """
SELECT 'v' || number AS view_id, 'visitor-' || hash(visit) % {visitors} AS visitor_id,
  TIMESTAMPTZ '2026-10-20 00:00:00Z' + to_seconds(
    (hash(visit, 1) % 2592000 + 60 * step + hash(number) % 60)::BIGINT) AS viewed_at,
  ['home', 'product', 'product', 'product', 'product', 'product', 'cart', 'order'][step + 1] AS page,
  CASE WHEN page = 'product' THEN (hash(number, 2) % 10000)::DOUBLE / 100 END AS price,
  CASE WHEN page = 'cart' THEN (hash(number, 3) % 20000)::DOUBLE / 100 END AS cart_value,
  viewed_at + to_seconds((hash(number, 4) % 10)::BIGINT) AS ingested_at
FROM (SELECT range AS number, range // 8 AS visit, range % 8 AS step FROM range({first}, {end}))"""
# How often a row is in one table more than in the other, whatever the order of the rows.
DIFFERENCE = """
SELECT coalesce(sum(abs(surplus)), 0) FROM (
  SELECT sum(side) AS surplus FROM (
    SELECT {columns}, 1 AS side FROM read_parquet({files})
    UNION ALL SELECT {columns}, -1 AS side FROM read_parquet({other_files}))
  GROUP BY {columns} HAVING surplus <> 0)"""


def settings_of(home: str, engine: str) -> Settings:
    """Return the settings of the installation below `home` that computes with an engine."""
    folder = Path(home) / engine
    if engine == "duckdb":
        return load_settings(home=folder)
    return load_settings(
        home=folder,
        data_url=f"s3://gyre/{Path(home).name}",
        engine="spark",
        spark_master=f"spark://{HOST}:7077",
    )


def load_example(home: str, name: str) -> Dataset:
    """Load the dataset of an example."""
    if name == "page_views":
        dataset: Dataset = load_page_views(home)
        return dataset
    from feature_repo.datasets import load_dataset  # noqa: PLC0415  (heavy)

    return load_dataset(name)


def land_page_views(settings: Settings, dataset: Dataset, rows: int) -> None:
    """Write so many page views into the raw table, by batches."""
    from feature_engine.offline.raw import raw_table  # noqa: PLC0415  (heavy)
    from feature_repo.definition import TIMESTAMP  # noqa: PLC0415  (heavy)

    raw = raw_table(settings, dataset)
    schema = dataset.schema.append(pa.field("ingested_at", TIMESTAMP))
    for first_row in range(0, rows, ROWS_AT_ONCE):
        end_row = min(first_row + ROWS_AT_ONCE, rows)
        statement = PAGE_VIEWS.format(visitors=rows // 40, first=first_row, end=end_row)
        page_views = duckdb.sql(statement).to_arrow_table()
        raw.merge(page_views.cast(schema), dataset.key, ["page"])


def write_features(home: str, name: str, engine: str) -> dict[str, float]:
    """Measure the features of an example by one engine."""
    from feature_engine.offline.raw import raw_table  # noqa: PLC0415  (heavy)
    from feature_engine.offline.views import write_views  # noqa: PLC0415

    settings = settings_of(home, engine)
    dataset = load_example(home, name)
    raw = raw_table(settings, dataset)
    start = time.perf_counter()
    write_views(settings, dataset, raw)
    return {
        "seconds": time.perf_counter() - start,
        **view_sizes(settings, dataset),
    }


def build_frame(home: str, engine: str) -> dict[str, Any]:
    """Measure the training frame of the shipped model by one engine."""
    return frame_values(settings_of(home, engine))


def compare(home: str, name: str) -> dict[str, float]:
    """Count the rows of an example's features that only one of both engines has."""
    from feature_engine.offline.views import view_table  # noqa: PLC0415  (heavy)

    rows = 0
    differing_rows = 0
    config = {"memory_limit": "4GB", "temp_directory": home}
    for view in load_example(home, name).views:
        table = view_table(settings_of(home, "duckdb"), view)
        other_table = view_table(settings_of(home, "spark"), view)
        statement = DIFFERENCE.format(
            columns=", ".join(table.stored_schema().names),
            files=table.files(),
            other_files=other_table.files(),
        )
        with duckdb.connect(config=config) as connection:
            rows += connection.read_parquet(table.files()).shape[0]
            differing_rows += connection.sql(statement).fetchone()[0]
    return {"rows": rows, "differing_rows": differing_rows}


def processor_seconds() -> float:
    """Return what all processes of this namespace have used, and those that ended before."""
    seconds = 0.0
    for process in psutil.process_iter():
        try:
            seconds += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue  # it has ended
    return seconds


PEERS = {"features": write_features, "frame": build_frame, "compare": compare}


def say(rows: int, subject: str, engine: str, values: dict[str, Any] | None) -> None:
    """Print a line of figures."""
    if values is None:
        print(f"{rows:>10,} {subject:10}  {engine:6}  more than {LIMIT_MB:,} MB: ended")
        return
    texts = [f"{rows:>10,} {subject:10}  {engine:6}", f"{values['seconds']:7.1f} s"]
    texts.append(f"processor {values['processor']:6.1f} s")
    texts.append(f"Python {values['mb']:5,.0f} MB")
    texts.append(f"JVM {values['java_mb']:5,.0f} MB")
    texts.append(f"PSS {values['pss_mb']:5,.0f} MB")
    if "files" in values:
        texts.append(f"{values['files']} files of {values['files_mb']:,.0f} MB")
    if "extent" in values:
        texts.append(values["extent"])
    texts.append(f"load {values['load']:.1f}")
    print("  ".join(texts), flush=True)


def measure(peer: str, home: Path, *arguments: str) -> dict[str, Any] | None:
    """Measure a peer with the seconds of all processors; None if it passed the limit of memory."""
    start = processor_seconds()
    values = watched("cluster", peer, home, *arguments, folder=home)
    if values is None:
        return None
    values["processor"] = processor_seconds() - start
    return values


def measure_example(folder: Path, rows: int, name: str) -> float:
    """Measure one example; return the peak PSS of Spark's driver in MB, of features."""
    home = folder / f"{name}-{rows}"
    home.mkdir()
    dataset = load_example(str(home), name)
    pss_mb = 0.0
    for engine in ENGINES:
        settings = settings_of(str(home), engine)
        if name == "orders":
            land_orders(settings, rows)
        else:
            land_page_views(settings, dataset, rows)
        values = measure("features", home, name, engine)
        say(rows, name, engine, values)
        if values and engine == "spark":
            pss_mb = values["pss_mb"]
        if name == "orders":
            say(rows, "frame", engine, measure("frame", home, engine))
    values = measure("compare", home, name)
    assert values is not None
    subject = f"{name}: of {values['rows']:,} rows of features differ"
    promised(subject, values["differing_rows"], 0, "rows")
    return pss_mb


def main(sizes: list[int]) -> None:
    print(f"features by Spark on two workers, and by DuckDB; {os.cpu_count()} cores")
    with (
        tempfile.TemporaryDirectory(prefix="gyre-bench-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(name)
        (folder / "spark-defaults.conf").write_text(DEFAULTS)
        patch.setenv("SPARK_CONF_DIR", name)
        with running_cluster(folder) as cluster:
            cluster.restore()
            for example in ("orders", "page_views"):
                peaks = [measure_example(folder, rows, example) for rows in sizes]
                span = f"{sizes[-1]:,} to {sizes[0]:,} rows"
                promised(
                    f"{example}: driver's PSS at {span}", peaks[-1] / peaks[0], 1.2, "x"
                )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in PEERS:
        print_peer(PEERS)
    else:
        main([int(size) for size in sys.argv[1:]] or SIZES)

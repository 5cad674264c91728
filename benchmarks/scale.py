"""What features and a training frame of many orders take on one machine, by DuckDB.

    python -m benchmarks.scale [orders …, one, five and ten million if not given]

Orders: the shipped ones as often as it takes, each time of customers of their own, at random seconds
of their days (benchmarks/ingest.py), merged a million at a time. Features: `write_views` with no
view there. Frame: labels and features at the snapshots of the shipped model, by `build_frame`. Each
is measured once, in a process of its own, which is ended if it passes 6 GB. Memory is its peak with
imports. Seconds are without, of the clock and of the processor. Spilled is the largest size of
DuckDB's temporary files.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq

from benchmarks.ingest import AS_OF, HISTORY, SHIPPED, SHIPPED_ROWS
from benchmarks.support.measure import print_peer
from benchmarks.support.watch import LIMIT_MB, MB, watched
from core.settings import Settings, load_settings

if TYPE_CHECKING:
    from feature_repo.definition import Dataset

MODEL = "customer_churn_model"
SIZES = [1_000_000, 5_000_000, 10_000_000]
COPIES_AT_ONCE = 15
"""Of the shipped orders: a million."""


def land_orders(settings: Settings, rows: int) -> None:
    """Write so many orders into the raw table, by batches."""
    from feature_engine.ingest import pipeline  # noqa: PLC0415  (heavy)

    dataset = pipeline.load_dataset("orders")
    raw = pipeline.raw_table(settings, dataset)
    settings.home.mkdir(parents=True, exist_ok=True)
    file = settings.home / "batch.parquet"
    rows_at_once = COPIES_AT_ONCE * SHIPPED_ROWS
    for batch, first_row in enumerate(range(0, rows, rows_at_once)):
        first_copy = batch * COPIES_AT_ONCE
        statement = HISTORY.format(
            shipped=SHIPPED,
            first_copy=first_copy,
            end_copy=first_copy + COPIES_AT_ONCE,
            rows=min(rows_at_once, rows - first_row),
            to=file,
        )
        duckdb.execute(statement)
        orders = pq.read_table(file).cast(dataset.schema)
        orders = orders.append_column("ingested_at", orders["order_ts"])
        raw.merge(orders, dataset.key, ["order_id"])
    file.unlink()


def view_sizes(settings: Settings, dataset: Dataset) -> dict[str, float]:
    """Return the number and the size of the files of all views of a dataset."""
    from feature_engine.offline.views import view_table  # noqa: PLC0415  (heavy)

    sizes = []
    for view in dataset.views:
        table = view_table(settings, view)
        sizes += [(table.path / name).stat().st_size for name in table.names()]
    return {"files": len(sizes), "files_mb": sum(sizes) / MB}


def write_features(home: str) -> dict[str, float]:
    """Measure the features of all orders."""
    from feature_engine.ingest import pipeline  # noqa: PLC0415  (heavy)
    from feature_engine.offline import views  # noqa: PLC0415  (heavy)

    settings = load_settings(home=Path(home))
    dataset = pipeline.load_dataset("orders")
    raw = pipeline.raw_table(settings, dataset)
    start = time.perf_counter()
    processor_start = time.process_time()
    views.write_views(settings, dataset, raw)
    return {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - processor_start,
        **view_sizes(settings, dataset),
    }


def build_frame(home: str) -> dict[str, Any]:
    """Measure the training frame of the shipped model."""
    return frame_values(load_settings(home=Path(home)))


def frame_values(settings: Settings) -> dict[str, Any]:
    """Build the training frame of the shipped model; return the figures."""
    from core.errors import TrainingError  # noqa: PLC0415
    from core.spec import load_spec  # noqa: PLC0415
    from feature_engine.ingest import pipeline  # noqa: PLC0415  (heavy)
    from feature_engine.offline.labels import dataset_labels  # noqa: PLC0415
    from feature_repo.published import store  # noqa: PLC0415  (heavy)
    from training.data import frame  # noqa: PLC0415
    from training.data.snapshots import plan_snapshots  # noqa: PLC0415
    from training.planning import first_known_event  # noqa: PLC0415

    spec = load_spec(MODEL)
    dataset = pipeline.load_dataset(str(spec.dataset))
    version = pipeline.raw_table(settings, dataset).version
    store.publish_beside(settings, dataset)
    start = time.perf_counter()
    processor_start = time.process_time()
    source = dataset_labels(settings, dataset, spec.label_name)
    first_event = first_known_event(source, AS_OF, version)
    plan = plan_snapshots(first_event, AS_OF, source.label, spec.snapshots)
    try:
        rows = frame.build_frame(
            settings=settings,
            spec=spec,
            source=source,
            snapshots=plan.snapshots,
            as_of=AS_OF,
            version=version,
        )
        extent = f"{rows.num_rows:,} rows of {len(plan.snapshots)} snapshots"
    except TrainingError as exc:  # its rows do not fit
        extent = str(exc)
    return {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - processor_start,
        "extent": extent,
    }


PEERS = {"features": write_features, "frame": build_frame}


def say(orders: int, peer: str, values: dict[str, Any] | None) -> None:
    """Print a line of figures."""
    if values is None:
        print(f"{orders:>11,}  {peer:8}  more than {LIMIT_MB:,} MB: ended", flush=True)
        return
    texts = [f"{orders:>11,}  {peer:8}", f"{values['seconds']:7.1f} s"]
    texts.append(f"processor {values['processor']:6.1f} s")
    texts.append(f"{values['mb']:6,.0f} MB")
    texts.append(f"spilled {values['spilled_mb']:7,.0f} MB")
    if "files" in values:
        texts.append(f"{values['files']} files of {values['files_mb']:,.0f} MB")
    if "extent" in values:
        texts.append(values["extent"])
    texts.append(f"load {values['load']:.1f}")
    print("  ".join(texts), flush=True)


def main(sizes: list[int]) -> None:
    print(f"features and a training frame by DuckDB; {os.cpu_count()} cores")
    for orders in sizes:
        with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name:
            settings = load_settings(home=Path(name) / "home")
            land_orders(settings, orders)
            for peer in PEERS:
                values = watched("scale", peer, settings.home, folder=Path(name))
                say(orders, peer, values)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in PEERS:
        print_peer(PEERS)
    else:
        main([int(size) for size in sys.argv[1:]] or SIZES)

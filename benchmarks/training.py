"""What a training costs: of the shipped orders, and of a frame of a million rows.

    python -m benchmarks.training [rows of the frame, a million if not given]

Each measurement is a process of its own that runs every stage (`gyre train` does no more), with
its imports, on an installation as of one day, MLflow a server beside it. The long history is the
shipped orders as often as it takes, each time of customers of their own (benchmarks/ingest.py).
The shipped orders are trained three times (median), the long history once, MLflow's own memory
apart. A table of ten million orders is trained on a sample of its customers, which gives a frame of
as many rows: the memory of a training is that of its frame, not that of the table. In our favour:
MLflow and the table are on one disk, and the page cache is warm.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.ingest import AS_OF, SHIPPED_ROWS, land
from benchmarks.support.measure import child, median, promised, rounds_of, start, title
from core.settings import load_settings
from tests.conftest import feast_apply, mlflow_server, unused_port

MODEL = "customer_churn_model"
FRAME_ROWS = 111_157  # of the shipped orders on AS_OF
TABLE_ORDERS = 10_000_000


def prepare(home: Path, copies: int, opened: ExitStack) -> None:
    """An installation whose orders are `copies` times those shipped, with an MLflow server."""
    settings = load_settings(home=home, mlflow_port=unused_port())
    home.mkdir(parents=True)
    (home / "gyre.env").write_text(f"GYRE_MLFLOW_PORT={settings.mlflow_port}\n")
    land(settings, home / "history.parquet", copies * SHIPPED_ROWS)
    feast_apply(settings)
    opened.enter_context(mlflow_server(settings))


def train(home: str, sample: str = "1") -> dict[str, float]:
    began = time.perf_counter()
    from core.spec import load_spec  # noqa: PLC0415
    from training import chain  # noqa: PLC0415  (imports are counted)

    imports = time.perf_counter() - began
    settings = load_settings(home=Path(home))
    shipped = load_spec(MODEL)
    snapshots = shipped.snapshots.model_copy(update={"sample": float(sample)})
    spec = shipped.model_copy(update={"snapshots": snapshots})
    named = {"key": f"bench-{time.time_ns()}", "reason": "bench", "who": "bench"}
    report = chain.train(settings, spec, AS_OF, **named, force=True)
    assert report.version, report.outcome
    return {"seconds": time.perf_counter() - began, "imports": imports}


PEERS = {"train": train}


def main(rows: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="gyre-bench-") as name,
        ExitStack() as opened,
    ):
        title("training of the shipped orders")
        shipped = Path(name) / "shipped"
        prepare(shipped, 1, opened)
        rounds = rounds_of(PEERS, lambda peer: child("training", peer, shipped))
        print(f"imports: {median(rounds, 'train', 'imports'):.1f} s")
        promised("a training", median(rounds, "train"), 40, "s")
        long = Path(name) / "long"
        long_copies = -(-rows // FRAME_ROWS)
        prepare(long, long_copies, opened)
        whole = child("training", "train", long)
        promised(f"of a frame of {rows:,} rows", whole["seconds"], 180, "s")
        promised("  its peak memory", whole["mb"], 2000, "MB")
        table = Path(name) / "table"
        table_copies = -(-TABLE_ORDERS // SHIPPED_ROWS)
        prepare(table, table_copies, opened)
        sampled = child("training", "train", table, long_copies / table_copies)
        print(f"of as many rows, a sample of 10M orders: {sampled['seconds']:.1f} s")
        promised("  its peak memory, times that", sampled["mb"] / whole["mb"], 1.1, "")


if __name__ == "__main__":
    start(main, 1_000_000, PEERS)

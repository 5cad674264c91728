"""What a training costs: of the shipped orders, with a search, and of a frame of a million rows.

    python -m benchmarks.training [rows of the frame, a million if not given]

Each measurement is a process of its own that runs every stage (`gyre train` does no more), with
its imports, on an installation as of one day, MLflow a server beside it. The long history is the
shipped orders as often as it takes, each time of customers of their own (benchmarks/ingest.py).
The shipped orders are trained three times (median), the others once. `proof` is that of the ONNX
file, a part of `evaluate`; MLflow's own memory is not counted.

What is unfair, in our favour: MLflow and the table are on one disk, and the page cache is warm.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq

from benchmarks.child import child, peak_mb
from benchmarks.ingest import AS_OF, HISTORY, SHIPPED
from stack.settings import load_settings
from tests.conftest import feast_apply, mlflow_server, unused_port

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS, TRIALS, MODEL = 3, 20, "customer_churn_model"
FRAME_ROWS = 111_157
"""Of the shipped orders on AS_OF: every snapshot that folds, training and test look at."""


def prepare(home: Path, copies: int, opened: ExitStack) -> None:
    """An installation whose orders are `copies` times those shipped, with an MLflow server."""
    from feature_repo import features  # noqa: PLC0415  (heavy)
    from feature_repo.datasets import load_dataset  # noqa: PLC0415

    settings, dataset = load_settings(home=home, mlflow_port=unused_port()), load_dataset("orders")
    home.mkdir(parents=True)
    (home / "gyre.env").write_text(f"GYRE_MLFLOW_PORT={settings.mlflow_port}\n")
    history, rows = home / "history.parquet", copies * pq.read_metadata(SHIPPED).num_rows
    duckdb.execute(HISTORY.format(shipped=SHIPPED, copies=copies, rows=rows, to=history))
    orders, raw = pq.read_table(history).cast(dataset.schema), features.raw_table(settings, dataset)
    raw.merge(orders.append_column("ingested_at", orders["order_ts"]), dataset.key, ("order_id",))
    features.write_views(settings, dataset, raw)
    feast_apply(settings)
    opened.enter_context(mlflow_server(settings))


def measured(home: Path, trials: int) -> dict[str, float]:
    """Seconds by stage, `imports` among them, and peak memory, of one training."""
    took = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = work()
        took[name] = time.perf_counter() - began
        return found

    chain = timed("imports", lambda: import_module("training.chain"))
    from mlflow_server.tracking import Tracking  # noqa: PLC0415
    from stack.spec import load_spec, searching  # noqa: PLC0415
    from training import evaluate  # noqa: PLC0415  (heavy)
    from training.dataset import load_frame  # noqa: PLC0415

    settings, spec, prove = load_settings(home=home), load_spec(MODEL), evaluate.prove
    spec = searching(spec, trials) if trials else spec
    evaluate.prove = lambda *args, **more: timed("proof", lambda: prove(*args, **more))
    opened = {"key": f"bench-{time.time_ns()}", "reason": "bench", "who": "bench", "force": True}
    run_id = timed("validate", lambda: chain.open_run(settings, spec, AS_OF, **opened))
    for name, stage in (("dataset", chain.dataset), ("train", chain.fit),
                        ("evaluate", chain.evaluate), ("gate", chain.gate)):  # fmt: skip
        timed(name, lambda stage=stage: stage(settings, spec, run_id))
    version = timed("register", lambda: chain.register(settings, spec, run_id))
    timed("promote", lambda: chain.promote(settings, spec, run_id, version, who="", reason=""))
    took["all"] = sum(seconds for name, seconds in took.items() if name != "proof")
    frame = load_frame(Tracking(settings), run_id)[0]
    return took | {"mb": peak_mb(), "rows": float(frame.num_rows)}


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name, ExitStack() as opened:
        print(f"training, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        shipped, long = Path(name) / "shipped", Path(name) / "long"
        prepare(shipped, 1, opened)
        rounds = [child("benchmarks.training", shipped, 0) for _ in range(ROUNDS)]
        found = {
            "shipped": {part: statistics.median(r[part] for r in rounds) for part in rounds[0]},
            f"{TRIALS} trials": child("benchmarks.training", shipped, TRIALS),
        }
        prepare(long, -(-rows // FRAME_ROWS), opened)
        found[f"{rows:,} rows"] = child("benchmarks.training", long, 0)
        print(f"{'seconds':10}" + "".join(f"{title:>16}" for title in found))
        for part in rounds[0]:
            print(f"{part:10}" + "".join(f"{each[part]:16.1f}" for each in found.values()))


if __name__ == "__main__":
    if sys.argv[2:]:
        print(json.dumps(measured(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)

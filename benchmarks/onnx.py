"""scikit-learn beside ONNX: the same forest and the same rows, one row and a batch of 1,000.

    python -m benchmarks.onnx

The forest of the shipped spec is fitted on the training rows of the shipped orders, and exported as
a training does it. Both score rows of the test set that lie in memory as a pandas frame, in this
process, on one core and with one thread: `predict_proba` of the fitted pipeline, and ONNX Runtime
as training calls it, the columns of the frame turned into arrays included. Rounds are interleaved;
a time is the median of a round's calls, a ratio the median over the rounds. It is processor time, as
others may use the core too. In ONNX's favour: one session answers all calls, as in serving. Against
it: serving feeds it no frame.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from benchmarks.support.measure import child, title
from benchmarks.training import MODEL, prepare
from core.settings import load_settings
from core.spec import load_spec
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.manifest import SCORE
from training.data.frame import feature_columns, snapshot_rows
from training.model.onnx_export import exported
from training.model.scoring import open_session, session_inputs
from training.stages.dataset import load_frame
from training.stages.train import fit_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from core.spec import ModelSpec

ROUNDS = 9
CALLS = {1: 200, 1_000: 30}
"""Calls of a round, by the rows of each."""


def seconds(call: Callable[[], object], calls: int) -> float:
    """Return the median processor time of a call."""
    times = []
    for _ in range(calls):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return statistics.median(times)


def onnx_scores(session: Any, spec: ModelSpec, rows: pd.DataFrame) -> Any:
    return session.run([SCORE], session_inputs(spec.inputs, rows))


def compare(home: Path) -> None:
    settings = load_settings(home=home)
    spec = load_spec(MODEL)
    (version,) = Registry(settings).versions(MODEL)
    frame, plan = load_frame(Tracking(settings), version.run_id)
    forest = fit_pipeline(spec, spec.estimators[0], snapshot_rows(frame, plan.train))
    forest[-1].set_params(n_jobs=1)
    session = open_session(exported(forest, spec))
    test_rows = feature_columns(spec, snapshot_rows(frame, plan.test))
    for count, calls in CALLS.items():
        rows = test_rows.head(count)
        by_sklearn = partial(forest.predict_proba, rows)
        by_onnx = partial(onnx_scores, session, spec, rows)
        pairs = [
            (seconds(by_sklearn, calls), seconds(by_onnx, calls)) for _ in range(ROUNDS)
        ]
        sklearn_ms, onnx_ms = (
            1000 * statistics.median(times) for times in zip(*pairs, strict=True)
        )
        ratios = sorted(sklearn / onnx for sklearn, onnx in pairs)
        print(
            f"{count:5,} rows: scikit-learn {sklearn_ms:.3f} ms, ONNX {onnx_ms:.3f} ms, "
            f"ratio {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        )


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="gyre-bench-") as name,
        ExitStack() as opened,
    ):
        home = Path(name) / "home"
        prepare(home, 1, opened)
        child("training", "train", home)
        title("scikit-learn beside ONNX, on one core")
        cores = os.sched_getaffinity(0)
        opened.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, {max(cores)})
        with threadpool_limits(1):
            compare(home)


if __name__ == "__main__":
    main()

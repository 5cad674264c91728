"""LightGBM beside scikit-learn's histogram boosting of the same size, both served as ONNX.

    python -m benchmarks.boosting [seconds per measurement, 3 if not given]

Both learn the shipped orders with 100 trees of 15 leaves. One worker serves them in turn
(`benchmarks.servers` says how it runs); medians of three rounds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import httpx

from benchmarks import servers
from benchmarks.measure import ROUNDS, promised, title
from benchmarks.serving import closed
from core.training_spec import Estimator, Limit
from tests.serving.conftest import SPEC, Rig
from training import chain

TREES = {
    "lightgbm": {"n_estimators": 100, "num_leaves": 15, "min_child_samples": 20},
    "hist_gradient_boosting": {"max_iter": 100, "max_leaf_nodes": 15, "min_samples_leaf": 20},
}
ENOUGH = Limit(metric="log_loss", rule="at_most", value=10)


def train(rig: Rig, kind: str) -> str:
    """Bring a version of this estimator into production, and return it."""
    one = Estimator(name=kind, type=kind, parameters={**TREES[kind], "learning_rate": 0.05})
    spec = SPEC.model_copy(update={"estimators": (one,), "gates": (ENOUGH,), "search": None})
    named = {"key": kind, "reason": "bench", "who": "bench"}
    report = chain.train(rig.settings, spec, datetime.now(UTC), force=True, **named)
    assert report.version, report.outcome
    return report.version


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name, ExitStack() as opened:
        opened.callback(os.sched_setaffinity, 0, servers.CORES)
        opened.enter_context(servers.paused_stack())
        rig = servers.install(opened, Path(name))
        versions = {kind: train(rig, kind) for kind in TREES}
        ours, ratios = servers.start_ours(opened, rig), {1: list[float](), 16: list[float]()}
        client = opened.enter_context(httpx.Client(base_url=rig.settings.serving_address))
        title("requests/s of LightGBM to histogram boosting")
        for _ in range(ROUNDS):
            rates = []
            for version in versions.values():
                rig.promote(version)
                rig.answers_as(client, version)
                rates.append({n: closed(ours, n, seconds).rate for n in ratios})
            for n, found in ratios.items():
                found.append(rates[0][n] / rates[1][n])
        for n, found in ratios.items():
            promised(f"at {n} connections", median(found), 0.8, "x", least=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 3.0)
